"""Images against the full-precision images of the same seeds: PSNR, SSIM, LPIPS. Fidelity, not quality."""

from collections.abc import Callable

import torch

from iec.evaluation.bootstrap import bootstrap_mean, bootstrap_psnr
from iec.evaluation.image_sets import ImageSet, require_pairs
from iec.evaluation.metrics.figure import Figure
from iec.evaluation.metrics.lpips import Lpips
from iec.evaluation.metrics.ssim import ssim
from iec.evaluation.psnr import mean_squared_error

#: A distance or likeness of images uint8 [B, C, H, W] and their references: float64 [B].
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def paired_figures(
    images: ImageSet,
    full_precision: ImageSet,
    metrics: tuple[str, ...] = ("psnr", "ssim"),
    lpips: Lpips | None = None,
    batch_size: int = 100,
    on_progress: Callable[[int], None] = lambda images: None,
) -> list[Figure]:
    """PSNR of the mean squared error, mean SSIM and mean LPIPS, as `metrics` names them, image by image in order.

    lpips: needed for "lpips". Raises ValueError where the sets are no pairs, or hold fewer than 10 images.
    """
    require_pairs(images, full_precision)
    measures: dict[str, Measure] = {"psnr": mean_squared_error, "ssim": ssim}
    if lpips is not None:
        measures["lpips"] = lpips
    values: dict[str, list[torch.Tensor]] = {name: [] for name in metrics}
    for ours, theirs in zip(images.batches(batch_size), full_precision.batches(batch_size), strict=True):
        for name in metrics:
            values[name].append(measures[name](ours, theirs))
        on_progress(len(ours))
    return [_figure(name, torch.cat(found)) for name, found in values.items()]


def _figure(name: str, values: torch.Tensor) -> Figure:
    if name == "psnr":
        return Figure("PSNR (dB)", bootstrap_psnr(values), len(values), "higher")
    return Figure(name.upper(), bootstrap_mean(values), len(values), "lower" if name == "lpips" else "higher")
