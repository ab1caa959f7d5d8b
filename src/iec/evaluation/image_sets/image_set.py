"""What a set of images is to the metrics."""

from collections.abc import Iterator
from typing import Protocol

import torch


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


def require_same_shape(images: ImageSet, other: ImageSet) -> None:
    """Raise ValueError where the two sets differ in resolution or channel count."""
    if images.shape != other.shape:
        raise ValueError(
            f"'{images.name}' holds images of {describe(images.shape)}, but '{other.name}' of {describe(other.shape)}: "
            "both must have the same resolution and channels."
        )


def describe(shape: tuple[int, int, int]) -> str:
    """Such as `32x32 pixels, 3 channels`: width before height."""
    channels, height, width = shape
    return f"{width}x{height} pixels, {channels} channel{'s' if channels > 1 else ''}"
