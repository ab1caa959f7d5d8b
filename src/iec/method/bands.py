"""Frequency bands of an image: what is left of it at an eighth of its size, what half its size adds, and the rest."""

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch.nn import functional

#: How much smaller an image is made to cut off the frequencies above each band, lowest band first.
_FACTORS = (8, 2)
NUM_BANDS = len(_FACTORS) + 1


def split_bands(x: torch.Tensor) -> torch.Tensor:
    """The bands [3, B, C, H, W] of x [B, C, H, W], lowest frequencies first; they sum to x.

    Averages over squares of 8 and of 2 pixels, brought back by bilinear interpolation, bound the bands.
    """
    below = [torch.zeros_like(x), *(_blurred(x, factor) for factor in _FACTORS), x]
    return torch.stack([upper - lower for lower, upper in pairwise(below)])


def weighted_bands(parts: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """sum_j sum_k weights[j, k] band_k(parts[j]), of the shape of a part [B, C, H, W]; weights [m, 3].

    Every band is a difference of blurred images, and blurring is linear: all parts are blurred together.
    """
    steps = weights.diff(dim=1).neg()  # what a blurred image counts: the weight below its bound less that above
    total = _mixed(parts, weights[:, -1])
    for factor, column in zip(_FACTORS, steps.T, strict=True):
        total = total + _blurred(_mixed(parts, column), factor)
    return total


def _mixed(parts: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total = total + weight * part
    return total


def _blurred(x: torch.Tensor, factor: int) -> torch.Tensor:
    rows, columns = (_blur(length, factor, x.dtype, x.device) for length in x.shape[-2:])
    blurred: torch.Tensor = rows @ x @ columns.T
    return blurred


@lru_cache(maxsize=32)
def _blur(length: int, factor: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Averaging over `factor` values and interpolating linearly back, as a matrix [length, length]."""
    units = torch.eye(length, dtype=torch.float64)[None]
    averaged = functional.adaptive_avg_pool1d(units, math.ceil(length / factor))
    return functional.interpolate(averaged, size=length, mode="linear", align_corners=False)[0].T.to(device, dtype)
