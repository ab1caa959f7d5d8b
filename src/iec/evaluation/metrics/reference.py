"""The real images that others are compared with: images, their statistics, or the embedded CIFAR-10 test set."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from iec.evaluation.image_sets import ImageSet, has_images, open_images, read_statistics, require_same_shape
from iec.evaluation.metrics.cifar import CifarExtractor
from iec.evaluation.metrics.extractor import FeatureExtractor
from iec.evaluation.metrics.feature_set import FeatureSet, Gaussian, collect
from iec.models.features import load_reference


@dataclass(frozen=True)
class ReferenceSource:
    """Where the features of a reference come from: images, statistics that are known already, or both."""

    name: str
    images: ImageSet | None = None
    known: FeatureSet | None = None

    @property
    def has_features(self) -> bool:
        """Whether features of single images can be had, as KD, precision and recall need them."""
        return self.images is not None or (self.known is not None and self.known.kept is not None)

    def measure(
        self, extractor: FeatureExtractor, batch_size: int, on_progress: Callable[[int], None] = lambda images: None
    ) -> FeatureSet:
        """The features; statistics of the file stand in the place of those of its images where dimensions agree.

        guided-diffusion's batches carry 10,000 images beside the statistics of the whole set.
        """
        if self.images is None:
            assert self.known is not None
            return self.known
        found = collect(self.images, extractor, batch_size, on_progress=on_progress)
        if self.known is None or len(self.known.pooled.mean) != len(found.pooled.mean):
            return found
        spatial = self.known.spatial
        agrees = spatial is not None and found.spatial is not None and len(spatial.mean) == len(found.spatial.mean)
        return replace(found, n=None, pooled=self.known.pooled, spatial=spatial if agrees else found.spatial)


def open_reference(path: str | Path | None, images: ImageSet, extractor: FeatureExtractor) -> ReferenceSource:
    """The reference at `path`: a folder, an npz of images or statistics, or our safetensors; None is the embedded one.

    Raises ValueError, before any feature is computed, where there is none, its keys are wrong, or its images have
    another resolution or channel count than `images`.
    """
    if path is None:
        if not isinstance(extractor, CifarExtractor):
            raise ValueError("Only the CIFAR network has a reference of its own: give --reference.")
        return ReferenceSource("CIFAR-10 test set", known=FeatureSet.of_reference(load_reference()))
    path = Path(path)
    if path.suffix == ".safetensors":
        return ReferenceSource(str(path), known=FeatureSet.of_reference(load_reference(path)))
    if path.is_file() and path.suffix.lower() == ".npz" and not has_images(path):
        return ReferenceSource(str(path), known=_statistics(path))
    opened = open_images(path)
    require_same_shape(images, opened)
    return ReferenceSource(str(path), opened, _statistics_beside(path))


def _statistics(path: Path) -> FeatureSet:
    found = read_statistics(path)
    spatial = Gaussian(found["mu_s"], found["sigma_s"]) if "mu_s" in found else None
    return FeatureSet(None, Gaussian(found["mu"], found["sigma"]), spatial)


def _statistics_beside(path: Path) -> FeatureSet | None:
    """The statistics that an npz carries beside its images, or None."""
    try:
        return _statistics(path) if path.is_file() else None
    except ValueError:
        return None
