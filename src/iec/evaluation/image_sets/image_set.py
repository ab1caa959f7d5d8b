"""What a set of images is to the metrics, and opening one by its path."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from iec.evaluation.image_sets.folder import FolderImages
from iec.evaluation.image_sets.npz import NpzImages


class ImageSet(Protocol):
    """Images of one shape, in an order of their own, that need not fit into memory."""

    @property
    def name(self) -> str:
        """What sentences call the set: its path."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of every image."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """The images in order, uint8 [B, C, H, W], B at most `size`."""


class TensorImages:
    """Images uint8 [N, C, H, W] in memory. Raises ValueError for another type or shape."""

    def __init__(self, images: torch.Tensor, name: str = "the images") -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"Images must be uint8 [N, C, H, W], but {name} are {images.dtype} {list(images.shape)}.")
        self.images, self.name = images, name

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """The images in order."""
        yield from (batch for batch in torch.split(self.images, size) if len(batch))


def open_images(path: str | Path) -> ImageSet:
    """The images of a folder or of an npz file.

    Raises ValueError, in one sentence, where there is none, a file is corrupt or truncated (named and counted), shapes
    differ, or an npz has other keys.
    """
    path = Path(path)
    if path.is_dir():
        return FolderImages(path)
    if not path.is_file():
        raise ValueError(f"There is no image folder or npz file '{path}'.")
    if path.suffix.lower() != ".npz":
        raise ValueError(f"'{path}' is no set of images: give a folder of PNG or JPEG files, or an npz file.")
    return NpzImages(path)


def require_same_shape(images: ImageSet, other: ImageSet) -> None:
    """Raise ValueError where the two sets differ in resolution or channel count."""
    if images.shape != other.shape:
        raise ValueError(
            f"'{images.name}' holds images of {describe(images.shape)}, but '{other.name}' of {describe(other.shape)}: "
            "both must have the same resolution and channels."
        )


def require_pairs(images: ImageSet, other: ImageSet) -> None:
    """Raise ValueError where image i of one set cannot be that of the other: other shapes, numbers, or known seeds."""
    require_same_shape(images, other)
    if len(images) != len(other):
        raise ValueError(
            f"'{images.name}' holds {len(images)} images, but '{other.name}' {len(other)}: "
            "pairs need the same images of both."
        )
    seeds = [part.seeds for part in (images, other) if isinstance(part, FolderImages) and part.seeds is not None]
    if len(seeds) == 2 and seeds[0] != seeds[1]:
        raise ValueError(f"'{images.name}' and '{other.name}' were sampled from other seeds: sample one of them again.")


def describe(shape: tuple[int, int, int]) -> str:
    """Such as `32x32 pixels, 3 channels`: width before height."""
    channels, height, width = shape
    return f"{width}x{height} pixels, {channels} channel{'s' if channels > 1 else ''}"
