"""A folder of PNG and JPEG files as a set of images."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
_WORKERS = 8
_NAMED = 3  # bad files that a refusal names


class FolderImages:
    """The PNG and JPEG files of a folder and its subfolders, sorted by path; palettes are read as RGB.

    seeds: of the images in order, where `iec sample` made them, else None.
    Every file is decoded once when the set is opened. Raises ValueError, in one sentence that names and counts them,
    where files are corrupt, truncated or of another shape than most, and where there is no image or `iec sample` is not
    finished there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.seeds = _seeds(self.path)
        self.files = sorted(
            file for file in self.path.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not self.files:
            raise ValueError(f"'{path}' holds no images: there is no PNG or JPEG file in it.")
        shapes = _decoded_shapes(self.files, self.path)
        self.shape, count = Counter(shapes).most_common(1)[0]
        if count < len(shapes):
            others = [file for file, shape in zip(self.files, shapes, strict=True) if shape != self.shape]
            raise ValueError(
                f"{len(others)} of {len(shapes)} images in '{path}' have another resolution or channel count than the "
                f"rest: {_names(others, self.path)}."
            )

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """The images in the order of their paths, uint8 [B, C, H, W]."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            for start in range(0, len(self.files), size):
                pixels = np.stack(list(pool.map(_decode, self.files[start : start + size])))
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode(file: Path) -> np.ndarray:
    """The pixels, uint8 [H, W, C]."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    if pixels.dtype != np.uint8:
        raise ValueError(f"has pixels of type {pixels.dtype}, not 8 bits")
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _decoded_shapes(files: Sequence[Path], folder: Path) -> list[tuple[int, int, int]]:
    def shape(file: Path) -> tuple[int, int, int] | None:
        try:
            height, width, channels = _decode(file).shape
        except Exception:  # a decoder raises many kinds on broken data; whatever it was, there is no image
            return None
        return channels, height, width

    with ThreadPoolExecutor(_WORKERS) as pool:
        shapes = list(pool.map(shape, files))
    broken = [file for file, found in zip(files, shapes, strict=True) if found is None]
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(files)} images in '{folder}' are corrupt or truncated: {_names(broken, folder)}. "
            "Replace or remove them; iec sample makes its own again once they are removed."
        )
    return [found for found in shapes if found is not None]


def _seeds(folder: Path) -> list[int] | None:
    """The seeds in the record of `iec sample`, or None without one; refuses a run that is not finished."""
    record = folder / "sampling.json"
    if not record.is_file():
        return None
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        complete, seeds = bool(found.get("complete", True)), list(found["generator_seeds"])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"'{record}' is no record of a sampling run.") from error
    if not complete:
        raise ValueError(f"'{folder}' does not hold all of its {len(seeds)} images yet: run the same iec sample again.")
    return seeds


def _names(files: Sequence[Path], folder: Path) -> str:
    shown = ", ".join(f"'{file.relative_to(folder)}'" for file in files[:_NAMED])
    return shown if len(files) <= _NAMED else f"{shown} and {len(files) - _NAMED} more"
