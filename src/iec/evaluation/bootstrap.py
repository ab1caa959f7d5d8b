"""95 % intervals by resampling the images, and the paired test that separates two rows of a table.

The reference is held fixed: an interval says how the value would vary with other images from the same generator.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from iec.evaluation.frechet import Moments, frechet_distance_to_root, frechet_influence, square_root
from iec.evaluation.kernel import KernelTerms, kernel_distance
from iec.evaluation.psnr import decibels

LEVEL = 0.95
#: Below this, a resample of a single image, which has no kernel distance, is no longer out of the question.
MINIMUM_IMAGES = 10
#: Entries of the resampling weights that are held at once: 32 MB.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def separable(self) -> bool:
        """Whether the interval excludes 0: of a paired difference, whether the two rows differ."""
        return self.low > 0 or self.high < 0


def bootstrap(
    statistic: Callable[[torch.Tensor], torch.Tensor], n: int, replicates: int = 2000, seed: int = 0
) -> Estimate:
    """`statistic` of n images with its percentile interval, from `replicates` resamplings of them.

    statistic: of weights float64 [r, n], each row of which counts how often a resampling took each image, r values.
    Raises ValueError for fewer than 10 images.
    """
    _require_enough(n)
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, but is {replicates}.")
    value = statistic(torch.ones(1, n, dtype=torch.float64)).item()
    values = torch.cat([statistic(weights) for weights in _weights(n, replicates, seed)])
    return Estimate(value, *_percentiles(values))


def bootstrap_kernel_distance(terms: KernelTerms, replicates: int = 2000, seed: int = 0) -> Estimate:
    """The kernel distance with its percentile interval, from `replicates` resamplings of the images.

    Raises ValueError for fewer than 10 images.
    """
    return bootstrap(lambda weights: kernel_distance(terms, weights), terms.n, replicates, seed)


def bootstrap_kernel_difference(
    terms_a: KernelTerms, terms_b: KernelTerms, replicates: int = 2000, seed: int = 0
) -> Estimate:
    """The kernel distance of `terms_a` minus that of `terms_b`, paired: image i of both comes from the same seed.

    Each resampling takes the same images from both, so what the seeds have in common cancels.
    Raises ValueError for unequal numbers of images or fewer than 10.
    """
    if terms_a.n != terms_b.n:
        raise ValueError(f"A paired difference needs as many images in both sets, not {terms_a.n} and {terms_b.n}.")

    def difference(weights: torch.Tensor) -> torch.Tensor:
        return kernel_distance(terms_a, weights) - kernel_distance(terms_b, weights)

    return bootstrap(difference, terms_a.n, replicates, seed)


class Statistics(Protocol):
    """What a Frechet distance sees of a reference: its mean [d] and covariance [d, d], float64."""

    @property
    def mean(self) -> torch.Tensor: ...

    @property
    def covariance(self) -> torch.Tensor: ...


def bootstrap_frechet(features: torch.Tensor, reference: Statistics) -> Estimate:
    """The Frechet distance of features [n, d], n at least 10, to the reference; see `estimate_frechet`."""
    moments = Moments(features.shape[-1])
    moments.add(features)
    return estimate_frechet(moments.n, moments.mean, moments.covariance, features, reference.mean, reference.covariance)


def estimate_frechet(
    n: int,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    features: torch.Tensor,
    reference_mean: torch.Tensor,
    reference_covariance: torch.Tensor,
) -> Estimate:
    """The Frechet distance of n images of this mean [d] and covariance [d, d], with value +- 1.96 standard errors.

    The value is the plain distance, which n images make too large by about c/n; the interval says how it would vary
    with n other images, so it serves to compare sets of the same size. It is not made of resampled distances: a
    resampling estimates the covariance from an estimate and makes the error once more, so they lie too high. The
    standard error is what the bootstrap's becomes with many replicates, from the influence of each of `features`
    [m, d], m at least 10: those of all images, or of a random choice from them.
    """
    _require_enough(len(features))
    root = square_root(reference_covariance)
    value = frechet_distance_to_root(reference_mean, root, mean, covariance)
    influence = frechet_influence(features, reference_mean, root, mean, covariance)
    spread = 1.96 * influence.std().item() / math.sqrt(n)
    return Estimate(value, value - spread, value + spread)


def bootstrap_mean(values: torch.Tensor, replicates: int = 2000, seed: int = 0) -> Estimate:
    """The mean of finite values [n], n at least 10, with its percentile interval."""
    exact = values.double()
    if exact.dim() != 1 or not torch.isfinite(exact).all():
        raise ValueError("A mean needs finite values [n]; for PSNRs, some infinite, use the interval of the mean PSNR.")
    return bootstrap(lambda weights: weights @ exact / len(exact), len(exact), replicates, seed)


def bootstrap_psnr(squared_errors: torch.Tensor, replicates: int = 2000, seed: int = 0) -> Estimate:
    """`mean_psnr` in dB with its percentile interval, from the squared errors [n] of the images, n at least 10."""
    error = bootstrap_mean(squared_errors, replicates, seed)
    # Percentiles pass through a monotone map; a larger error is a lower PSNR, so the ends change places.
    value, low, high = decibels(torch.tensor([error.value, error.high, error.low], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)


def _require_enough(n: int) -> None:
    if n < MINIMUM_IMAGES:
        raise ValueError(f"A bootstrap interval needs at least {MINIMUM_IMAGES} images, but there are {n}.")


def _weights(n: int, replicates: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, CHUNK // n)
    for start in range(0, replicates, rows):
        taken = torch.randint(0, n, (min(rows, replicates - start), n), generator=generator)
        ones = torch.ones(taken.shape, dtype=torch.float64)
        yield torch.zeros_like(ones).scatter_add_(1, taken, ones)


def _percentiles(values: torch.Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high
