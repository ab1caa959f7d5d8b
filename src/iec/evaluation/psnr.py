"""Peak signal-to-noise ratio of images against the images they should have been."""

import math

import torch

PEAK = 255.0
_AT_ONCE = 256


def mean_squared_error(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The mean squared difference, float64 [N], of each image uint8 [N, C, H, W] from its reference.

    Raises ValueError where the types or shapes differ or there is no image.
    """
    if images.dtype != torch.uint8 or reference.dtype != torch.uint8:
        raise ValueError("PSNR compares images of type uint8.")
    if images.dim() != 4 or images.shape != reference.shape or images.numel() == 0:
        raise ValueError(
            "PSNR compares two sets [N, C, H, W] of one shape and at least one image, "
            f"not {list(images.shape)} and {list(reference.shape)}."
        )
    # A few at a time: as int32 the pixels take four times their memory.
    pairs = zip(torch.split(images, _AT_ONCE), torch.split(reference, _AT_ONCE), strict=True)
    return torch.cat([(a.int() - b.int()).square().flatten(1).double().mean(1) for a, b in pairs])


def decibels(squared_error: torch.Tensor) -> torch.Tensor:
    """10 log10(255^2 / e) of squared errors; infinite where the error is zero."""
    return 20 * math.log10(PEAK) - 10 * torch.log10(squared_error)


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The PSNR of each image in dB, float64 [N], of uint8 images [N, C, H, W]; infinite for identical images."""
    return decibels(mean_squared_error(images, reference))


def mean_psnr(images: torch.Tensor, reference: torch.Tensor) -> float:
    """The PSNR in dB of the squared error averaged over all images: infinite only if all are identical.

    The average of the images' own PSNRs is infinite as soon as one image is identical, which an exact cache or a
    perfect correction brings about, so it cannot rank anything; the average error stays finite and can.
    """
    return decibels(mean_squared_error(images, reference).mean()).item()
