"""Sets of images on disk, read in batches: folders of PNG and JPEG files, and guided-diffusion's npz batches."""

from iec.evaluation.image_sets.folder import FolderImages
from iec.evaluation.image_sets.image_set import ImageSet, TensorImages, require_same_shape
from iec.evaluation.image_sets.npz import NpzImages, has_images, read_statistics, write_images, write_statistics
from iec.evaluation.image_sets.opening import open_images, require_pairs

__all__ = [
    "FolderImages",
    "ImageSet",
    "NpzImages",
    "TensorImages",
    "has_images",
    "open_images",
    "read_statistics",
    "require_pairs",
    "require_same_shape",
    "write_images",
    "write_statistics",
]
