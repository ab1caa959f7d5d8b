"""Opening a set of images by its path, and pairing two sets."""

from pathlib import Path

from iec.evaluation.image_sets.folder import FolderImages
from iec.evaluation.image_sets.image_set import ImageSet, require_same_shape
from iec.evaluation.image_sets.npz import NpzImages


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
