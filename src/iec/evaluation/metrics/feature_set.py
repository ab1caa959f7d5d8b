"""A set of images as its features: streamed moments of all of them, and a bounded random choice for the rest."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from iec.evaluation.frechet import Moments
from iec.evaluation.image_sets import ImageSet
from iec.evaluation.metrics.extractor import FeatureExtractor, Features
from iec.models.features import Reference

#: Images whose own features are kept: 80 MB of Inception's, however many images there are.
KEPT = 10_000


@dataclass(frozen=True)
class Gaussian:
    """What a Frechet distance sees of a set: mean [d] and covariance [d, d], float64."""

    mean: torch.Tensor
    covariance: torch.Tensor


@dataclass(frozen=True)
class FeatureSet:
    """The features of n images.

    pooled, spatial: the moments of all images; None where the extractor has no such features or nobody measured them.
    kept: the features of all images, or of 10,000 chosen at random; None where only moments are known.
    """

    n: int | None
    pooled: Gaussian
    spatial: Gaussian | None = None
    kept: Features | None = None

    @classmethod
    def of_reference(cls, reference: Reference) -> "FeatureSet":
        """The real images of `iec.models.features`, of which features and moments are stored."""
        return cls(
            reference.n, Gaussian(reference.mean, reference.covariance), kept=Features(reference.features[:KEPT])
        )

    def statistics(self) -> dict[str, torch.Tensor]:
        """`mu`, `sigma` and, where they are there, `mu_s`, `sigma_s`, as guided-diffusion names them."""
        spatial = {} if self.spatial is None else {"mu_s": self.spatial.mean, "sigma_s": self.spatial.covariance}
        return {"mu": self.pooled.mean, "sigma": self.pooled.covariance, **spatial}


def collect(
    images: ImageSet,
    extractor: FeatureExtractor,
    batch_size: int = 500,
    kept: int = KEPT,
    on_progress: Callable[[int], None] = lambda images: None,
) -> FeatureSet:
    """The features of `images`, in memory that does not grow with their number; on_progress(images) per batch.

    Raises ValueError where the extractor cannot take the images, there are fewer than two, or features are not finite.
    """
    extractor.require_shape(images.shape)
    n = len(images)
    if n < 2:
        raise ValueError(f"'{images.name}' holds {n} image: at least 2 are needed.")
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.randperm(n, generator=torch.Generator().manual_seed(0))[:kept]] = True
    moments: dict[str, Moments] = {}
    parts: list[Features] = []
    start = 0
    for batch in images.batches(batch_size):
        features = extractor(batch)
        for name in ("pooled", "spatial"):
            found: torch.Tensor | None = getattr(features, name)
            if found is not None:
                moments.setdefault(name, Moments(found.shape[1])).add(found)
        parts.append(_rows(features, chosen[start : start + len(batch)]))
        start += len(batch)
        on_progress(len(batch))
    gaussians = {name: Gaussian(found.mean, found.covariance) for name, found in moments.items()}
    return FeatureSet(n, gaussians["pooled"], gaussians.get("spatial"), _concatenated(parts))


def _rows(features: Features, rows: torch.Tensor) -> Features:
    return _mapped(lambda tensors: tensors[0][rows], [features])


def _concatenated(parts: list[Features]) -> Features:
    return _mapped(torch.cat, parts)


def _mapped(change: Callable[[list[torch.Tensor]], torch.Tensor], parts: list[Features]) -> Features:
    def over(name: str) -> torch.Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else change(tensors)

    pooled = change([part.pooled for part in parts])
    return Features(pooled, over("logits"), over("spatial"))
