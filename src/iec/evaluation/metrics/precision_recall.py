"""Precision and recall: how many images lie within the real ones' neighbourhoods, and the other way round.

Source: Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", k = 3.
"""

import torch

from iec.evaluation.bootstrap import Estimate, bootstrap_mean
from iec.evaluation.metrics.feature_set import FeatureSet
from iec.evaluation.metrics.figure import Figure

NEIGHBOURS = 3
#: Rows of the distance matrix that are held at once: 80 MB in float64 for 10,000 columns.
CHUNK = 1000


def precision_recall(
    features: torch.Tensor, reference: torch.Tensor, neighbours: int = NEIGHBOURS
) -> tuple[Estimate, Estimate]:
    """Precision and recall of features [n, d] against reference features [m, d], each with its interval.

    A set's neighbourhoods are balls around its images that reach to their k-th nearest other. Precision resamples the
    images, recall the reference images, each with the neighbourhoods held fixed. Raises ValueError for a set of fewer
    than 10 images.
    """
    x, y = features.double(), reference.double()
    least = max(neighbours + 1, 10)
    if min(len(x), len(y)) < least:
        raise ValueError(
            f"Precision and recall need at least {least} images on each side, but there are {len(x)} and {len(y)}."
        )
    return (
        bootstrap_mean(within_neighbourhoods(x, y, neighbours).double()),
        bootstrap_mean(within_neighbourhoods(y, x, neighbours).double()),
    )


def within_neighbourhoods(points: torch.Tensor, centres: torch.Tensor, neighbours: int = NEIGHBOURS) -> torch.Tensor:
    """Which of `points` [n, d] lie within a neighbourhood of `centres` [m, d]: bool [n]."""
    radii = torch.cat(
        [
            # The nearest is the image itself, at distance 0.
            _squared(part, centres).topk(neighbours + 1, dim=1, largest=False).values[:, -1]
            for part in torch.split(centres, CHUNK)
        ]
    )
    return torch.cat([(_squared(part, centres) <= radii).any(1) for part in torch.split(points, CHUNK)])


def precision_recall_figures(
    precision: str, recall: str, images: FeatureSet, reference: FeatureSet
) -> tuple[Figure, Figure]:
    """Both figures, of the kept images. Raises ValueError where the reference's images are not known."""
    if images.kept is None or reference.kept is None:
        raise ValueError(f"{precision} and {recall} need the images of the reference: statistics alone do not say it.")
    ours, theirs = images.kept.pooled, reference.kept.pooled
    estimates = precision_recall(ours, theirs)
    return (
        Figure(precision, estimates[0], len(ours), "higher"),
        Figure(recall, estimates[1], len(ours), "higher"),
    )


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_(min=0)
