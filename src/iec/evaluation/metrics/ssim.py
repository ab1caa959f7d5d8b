"""Structural similarity of images to the images they should have been.

Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity": an 11x11 Gaussian
window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, each channel by itself, the mean where the window fits.
"""

import torch
from torch.nn import functional

from iec.evaluation.psnr import PEAK

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def ssim(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The SSIM of each image, float64 [N], at most 1, of uint8 images [N, C, H, W].

    Raises ValueError where types or shapes differ or an image is smaller than the window.
    """
    if images.dtype != torch.uint8 or reference.dtype != torch.uint8 or images.shape != reference.shape:
        raise ValueError("SSIM compares two sets of uint8 images [N, C, H, W] of one shape.")
    if images.dim() != 4 or min(images.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, not {list(images.shape)}.")
    x, y = images.double(), reference.double()
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    similarity = (
        (2 * mean_x * mean_y + _C1)
        * (2 * covariance + _C2)
        / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))
    )
    return similarity.mean(dim=(1, 2, 3))


def _windowed(images: torch.Tensor) -> torch.Tensor:
    """Gaussian-weighted local means, one axis after the other, where the window fits."""
    places = torch.arange(WINDOW, dtype=images.dtype) - WINDOW // 2
    weights = (-(places**2) / (2 * SIGMA**2)).exp()
    kernel = weights / weights.sum()
    n, channels, height, width = images.shape
    flat = images.reshape(n * channels, 1, height, width)
    filtered = functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return filtered.reshape(n, channels, *filtered.shape[2:])
