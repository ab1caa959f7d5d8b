"""The Frechet and the kernel distance of a set of images to a reference, as figures with intervals and warnings."""

import torch

from iec.evaluation.bootstrap import Estimate, bootstrap_kernel_distance, estimate_frechet
from iec.evaluation.frechet import is_rank_deficient
from iec.evaluation.kernel import kernel_terms
from iec.evaluation.metrics.feature_set import FeatureSet, Gaussian
from iec.evaluation.metrics.figure import Figure

#: Below this a Frechet distance is too much biased to stand alone.
ENOUGH = 10_000
#: Images that enter the kernel distance, whose matrix of pairs takes 200 MB in float64.
PAIRED = 5_000


def frechet_figure(name: str, images: FeatureSet, reference: FeatureSet, spatial: bool = False) -> Figure:
    """The Frechet distance over pooled or spatial features, of all images; a warning says where it says little.

    Raises ValueError where a side lacks these features, dimensions differ, or there are fewer than 10 images.
    """
    ours, theirs = (images.spatial, reference.spatial) if spatial else (images.pooled, reference.pooled)
    if ours is None or theirs is None or images.kept is None or images.n is None:
        raise ValueError(f"{name} needs {'spatial ' if spatial else ''}features of the images and of the reference.")
    _require_same_dimension(name, ours, theirs)
    features = images.kept.spatial if spatial else images.kept.pooled
    assert features is not None
    estimate = estimate_frechet(images.n, ours.mean, ours.covariance, features, theirs.mean, theirs.covariance)
    return Figure(name, estimate, images.n, "lower", _warning(name, images.n, reference.n, len(ours.mean)))


def kernel_figure(name: str, images: FeatureSet, reference: FeatureSet) -> Figure:
    """The kernel distance, unbiased at any number of images, of at most 5,000 of them.

    Raises ValueError where a side's features are not known, or there are fewer than 10 images.
    """
    if images.kept is None or reference.kept is None:
        raise ValueError(f"{name} needs the images of the reference: statistics alone do not say it.")
    ours = _at_most(images.kept.pooled, PAIRED)
    estimate: Estimate = bootstrap_kernel_distance(kernel_terms(ours, reference.kept.pooled))
    return Figure(name, estimate, len(ours), "lower")


def _warning(name: str, n: int, reference_n: int | None, dimension: int) -> str:
    if is_rank_deficient(n, dimension):
        return (
            f"{name}: {n} images are fewer than needed for {dimension} features; their covariance has rank {n - 1} "
            "at most, so the distance says little."
        )
    if reference_n is not None and is_rank_deficient(reference_n, dimension):
        return (
            f"{name}: the reference has {reference_n} images for {dimension} features; its covariance has rank "
            f"{reference_n - 1} at most, so the distance says little."
        )
    if n < ENOUGH:
        return (
            f"{name} of {n} images is biased upwards: below {ENOUGH:,} images compare it with sets of the same size "
            "only, and let the kernel distance decide."
        )
    return ""


def _require_same_dimension(name: str, ours: Gaussian, theirs: Gaussian) -> None:
    if len(ours.mean) != len(theirs.mean):
        raise ValueError(
            f"{name}: the reference's statistics are of {len(theirs.mean)} features, but the extractor has "
            f"{len(ours.mean)}: they were made with another network."
        )


def _at_most(features: torch.Tensor, count: int) -> torch.Tensor:
    """A random choice of `count` rows, or all of them where there are no more."""
    if len(features) <= count:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(1))[:count]]
