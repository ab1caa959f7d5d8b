"""Frequency bands of an image: what is left of it at an eighth of its size, what half its size adds, and the rest."""

import itertools
import math

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
    return torch.stack([upper - lower for lower, upper in itertools.pairwise(below)])


def _blurred(x: torch.Tensor, factor: int) -> torch.Tensor:
    size = (math.ceil(x.shape[-2] / factor), math.ceil(x.shape[-1] / factor))
    averaged = functional.adaptive_avg_pool2d(x, size)
    return functional.interpolate(averaged, size=x.shape[-2:], mode="bilinear", align_corners=False)
