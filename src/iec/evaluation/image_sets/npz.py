"""guided-diffusion's npz batches: `arr_0`, uint8 NHWC images; `mu`, `sigma`, `mu_s`, `sigma_s`, their statistics.

Source: the evaluations of Dhariwal and Nichol 2021, "Diffusion Models Beat GANs". Nothing is ever unpickled.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch

from iec.evaluation.image_sets.image_set import ImageSet
from iec.storage.files import write_atomically

IMAGES = "arr_0"
STATISTICS = ("mu", "sigma")
SPATIAL_STATISTICS = ("mu_s", "sigma_s")
# What zipfile, zlib and numpy raise on a file that is cut or is something else.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, SyntaxError)


class NpzImages:
    """The images `arr_0` of an npz, uint8 [N, H, W, C], streamed: they need not fit into memory.

    Raises ValueError where the file is broken, has no `arr_0`, or one of another type or shape; while reading, where
    it is truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        keys = _keys(self.path)
        if IMAGES not in keys:
            raise ValueError(f"'{path}' holds no images: it lacks '{IMAGES}' and has {_listed(keys)}.")
        with _stream(self.path, IMAGES) as (_, shape, fortran, dtype):
            if dtype != np.uint8 or len(shape) != 4 or fortran or 0 in shape:
                raise ValueError(f"'{IMAGES}' of '{path}' must be uint8 [N, H, W, C], but is {dtype} {list(shape)}.")
        self._count, height, width, channels = shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """The images in order, uint8 [B, C, H, W]."""
        channels, height, width = self.shape
        with _stream(self.path, IMAGES) as (stream, *_):
            for start in range(0, self._count, size):
                count = min(size, self._count - start)
                content = _read(stream, count * height * width * channels, self.path)
                pixels = np.frombuffer(content, np.uint8).reshape(count, height, width, channels)
                yield torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).contiguous()


def has_images(path: str | Path) -> bool:
    """Whether an npz holds images, not only statistics. Raises ValueError where it is no npz."""
    return IMAGES in _keys(Path(path))


def read_statistics(path: str | Path) -> dict[str, torch.Tensor]:
    """`mu` [d] and `sigma` [d, d], and `mu_s` and `sigma_s` where they are there, in float64.

    Raises ValueError where the file is broken, lacks a key, or an array is no mean or covariance.
    """
    path = Path(path)
    keys = _keys(path)
    if not set(STATISTICS) <= keys:
        raise ValueError(
            f"'{path}' holds neither images ('{IMAGES}') nor statistics ('mu' and 'sigma'), but {_listed(keys)}."
        )
    wanted = [*STATISTICS, *(SPATIAL_STATISTICS if set(SPATIAL_STATISTICS) <= keys else ())]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in wanted}
    except _BROKEN as error:
        raise ValueError(f"The statistics '{path}' cannot be read: {error}.") from error
    for mean, covariance in zip(wanted[::2], wanted[1::2], strict=True):
        d = arrays[mean].shape[0] if arrays[mean].ndim == 1 else 0
        if d < 1 or arrays[covariance].shape != (d, d) or not all(arrays[k].dtype.kind == "f" for k in wanted):
            raise ValueError(
                f"'{mean}' and '{covariance}' of '{path}' must be floating point [d] and [d, d], "
                f"but are {list(arrays[mean].shape)} and {list(arrays[covariance].shape)}."
            )
    return {key: torch.from_numpy(array.astype(np.float64)) for key, array in arrays.items()}


def write_images(path: str | Path, images: ImageSet, batch_size: int = 500) -> None:
    """Write the images as `arr_0`, uint8 NHWC, batch by batch."""
    channels, height, width = images.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), height, width, channels)}

    def write(temporary: Path) -> None:
        with (
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive,
            archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as stream,
        ):
            np.lib.format.write_array_header_1_0(stream, header)
            for batch in images.batches(batch_size):
                stream.write(batch.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

    write_atomically(path, write)


def write_statistics(path: str | Path, statistics: Mapping[str, torch.Tensor]) -> None:
    """Write `mu`, `sigma` and, where given, `mu_s`, `sigma_s`. Raises ValueError for other names."""
    if set(statistics) not in ({*STATISTICS}, {*STATISTICS, *SPATIAL_STATISTICS}):
        raise ValueError(f"Statistics are mu, sigma and, together, mu_s, sigma_s, not {sorted(statistics)}.")
    arrays = {name: value.double().cpu().numpy() for name, value in statistics.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append a suffix to it
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def _keys(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except _BROKEN as error:
        raise ValueError(f"'{path}' is no npz file, or is truncated: {error}.") from error


@contextmanager
def _stream(path: Path, key: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
    """The data of one array behind its header, with its shape, whether it is in Fortran order, and its type."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except _BROKEN as error:
            raise ValueError(f"'{key}' of '{path}' cannot be read: {error}.") from error
        yield stream, shape, fortran, dtype


def _read(stream: IO[bytes], count: int, path: Path) -> bytes:
    """`count` bytes. Raises ValueError where they are not there, or, at the end of the data, were altered."""
    try:
        content = stream.read(count)
    except _BROKEN as error:
        raise ValueError(f"The images '{path}' are corrupt or truncated: {error}.") from error
    if len(content) < count:
        raise ValueError(f"The images '{path}' are truncated.")
    return content


def _listed(keys: set[str]) -> str:
    return ", ".join(f"'{key}'" for key in sorted(keys)) or "nothing"
