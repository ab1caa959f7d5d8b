"""Training images: an .npz of JPEG bytes, or any folder of images."""

import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageSet:
    """Images as uint8 [N, 3, H, W], and their labels as int64 [N] where the source has them."""

    images: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


def load_images(path: str | Path, size: int = 32) -> ImageSet:
    """Load an .npz with `jpeg` (bytes), `offset` and optionally `label`, or a folder of image files.

    Images of another size are cropped to a centred square and resized to `size` pixels.
    Raises ValueError where the path is missing, holds no image, or holds one that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, size)
    if path.suffix == ".npz" and path.is_file():
        return _load_npz(path, size)
    raise ValueError(
        f"There is no training data at '{path}': give an .npz with 'jpeg' and 'offset', or a folder of images."
    )


def _load_npz(path: Path, size: int) -> ImageSet:
    with np.load(path, allow_pickle=False) as data:
        missing = {"jpeg", "offset"} - set(data.files)
        if missing:
            raise ValueError(f"'{path}' lacks {sorted(missing)}: it needs 'jpeg' (uint8) and 'offset' (int64).")
        jpeg, offset = data["jpeg"], data["offset"]
        labels = torch.from_numpy(data["label"].astype(np.int64)) if "label" in data.files else None
    if len(offset) < 2:
        raise ValueError(f"'{path}' holds no image.")
    images = [
        _decode(io.BytesIO(jpeg[start:end].tobytes()), f"image {i} of '{path}'", size)
        for i, (start, end) in enumerate(pairwise(offset))
    ]
    return ImageSet(torch.from_numpy(np.stack(images)), labels)


def _load_folder(path: Path, size: int) -> ImageSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"The folder '{path}' holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    images = [_decode(file, f"'{file}'", size) for file in files]
    return ImageSet(torch.from_numpy(np.stack(images)))


def _decode(source: io.BytesIO | Path, name: str, size: int) -> np.ndarray:
    try:
        with Image.open(source) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"Cannot read {name}: {error}.") from error
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
