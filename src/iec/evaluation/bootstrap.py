"""95 % intervals by resampling the images, and the paired test that separates two rows of a table.

The reference is held fixed: an interval says how the value would vary with other images from the same generator.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from iec.evaluation.frechet import frechet_distance_to_root, square_root
from iec.evaluation.kernel import KernelTerms, kernel_distance
from iec.evaluation.psnr import decibels
from iec.models.features import Reference

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


def bootstrap_kernel_distance(terms: KernelTerms, replicates: int = 2000, seed: int = 0) -> Estimate:
    """The kernel distance with its percentile interval, from `replicates` resamplings of the images.

    Raises ValueError for fewer than 10 images.
    """
    values = _replicate(lambda weights: kernel_distance(terms, weights), terms.n, replicates, seed)
    return Estimate(kernel_distance(terms).item(), *_percentiles(values))


def bootstrap_kernel_difference(
    terms_a: KernelTerms, terms_b: KernelTerms, replicates: int = 2000, seed: int = 0
) -> Estimate:
    """The kernel distance of `terms_a` minus that of `terms_b`, paired: image i of both comes from the same seed.

    Each resampling takes the same images from both, so what the seeds have in common cancels.
    Raises ValueError for unequal numbers of images or fewer than 10.
    """
    if terms_a.n != terms_b.n:
        raise ValueError(f"A paired difference needs as many images in both sets, not {terms_a.n} and {terms_b.n}.")

    def difference(weights: torch.Tensor | None = None) -> torch.Tensor:
        return kernel_distance(terms_a, weights) - kernel_distance(terms_b, weights)

    return Estimate(difference().item(), *_percentiles(_replicate(difference, terms_a.n, replicates, seed)))


def bootstrap_frechet(features: torch.Tensor, reference: Reference, replicates: int = 200, seed: int = 0) -> Estimate:
    """The Frechet distance of features [n, d], n at least 10, to the reference, with value +- 1.96 standard errors.

    The value is the plain distance, which n images make too large by about c/n; the interval says how it would vary
    with n other images, so it serves to compare sets of the same size. It is not made of percentiles: a resampling
    estimates the covariance from an estimate and makes the error once more, so resampled distances lie too high.
    200 replicates, because each takes an eigendecomposition, and a standard error needs no more.
    """
    exact = features.double()
    root = square_root(reference.covariance)

    def distances(weights: torch.Tensor) -> torch.Tensor:
        return torch.tensor(
            [frechet_distance_to_root(reference.mean, root, *_moments(exact, row)) for row in weights],
            dtype=torch.float64,
        )

    value = distances(torch.ones(1, len(exact), dtype=torch.float64)).item()
    spread = 1.96 * _replicate(distances, len(exact), replicates, seed).std().item()
    return Estimate(value, value - spread, value + spread)


def bootstrap_mean(values: torch.Tensor, replicates: int = 2000, seed: int = 0) -> Estimate:
    """The mean of finite values [n], n at least 10, with its percentile interval."""
    exact = values.double()
    if exact.dim() != 1 or not torch.isfinite(exact).all():
        raise ValueError("A mean needs finite values [n]; for PSNRs, some infinite, use the interval of the mean PSNR.")
    means = _replicate(lambda weights: weights @ exact / len(exact), len(exact), replicates, seed)
    return Estimate(exact.mean().item(), *_percentiles(means))


def bootstrap_psnr(squared_errors: torch.Tensor, replicates: int = 2000, seed: int = 0) -> Estimate:
    """`mean_psnr` in dB with its percentile interval, from the squared errors [n] of the images, n at least 10."""
    error = bootstrap_mean(squared_errors, replicates, seed)
    # Percentiles pass through a monotone map; a larger error is a lower PSNR, so the ends change places.
    value, low, high = decibels(torch.tensor([error.value, error.high, error.low], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)


def _replicate(statistic: Callable[[torch.Tensor], torch.Tensor], n: int, replicates: int, seed: int) -> torch.Tensor:
    """`statistic` of weights [r, n], each row of which counts how often a resampling took each image."""
    if n < MINIMUM_IMAGES:
        raise ValueError(f"A bootstrap interval needs at least {MINIMUM_IMAGES} images, but there are {n}.")
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, but is {replicates}.")
    return torch.cat([statistic(weights) for weights in _weights(n, replicates, seed)])


def _weights(n: int, replicates: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, CHUNK // n)
    for start in range(0, replicates, rows):
        taken = torch.randint(0, n, (min(rows, replicates - start), n), generator=generator)
        ones = torch.ones(taken.shape, dtype=torch.float64)
        yield torch.zeros_like(ones).scatter_add_(1, taken, ones)


def _moments(features: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n = weights.sum()
    mean = weights @ features / n
    centred = features - mean
    return mean, (centred.T * weights) @ centred / (n - 1)


def _percentiles(values: torch.Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high
