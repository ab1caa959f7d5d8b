"""A user's model as comparisons sample it: under DDIM with one of the paper's spacings, whatever its own scheduler."""

from typing import cast

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from iec.method.ddim import SPACINGS, Spacing
from iec.models.loading import load_pipeline
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler


def load_compared(model: str, dtype: torch.dtype, spacing: str, device: str = "cpu") -> DiffusionPipeline:
    """The pipeline of a diffusers folder or hub name, under DDIM with this spacing.

    Raises ValueError, in one sentence, for a model that DDIM and the other solvers cannot sample.
    """
    chosen = require_spacing(spacing)
    pipe = load_pipeline(model, dtype, device, "scheduler")
    config = pipe.scheduler.config
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"'{model}' predicts '{config.prediction_type}': here a model must predict the noise.")
    pipe.scheduler = SpacedDDIMScheduler.from_scheduler(pipe.scheduler, chosen)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None  # what it blacks out would be compared too
    if not isinstance(getattr(pipe, "unet", None), UNet2DModel) or set(pipe.components) != {"unet", "scheduler"}:
        return pipe
    _require_unconditional(pipe, model)
    own = UnconditionalPipeline(pipe.unet, pipe.scheduler)
    own.set_progress_bar_config(disable=True)
    return own


def require_spacing(spacing: str) -> Spacing:
    """`spacing` itself. Raises ValueError unless it is one of the paper's."""
    if spacing not in SPACINGS:
        raise ValueError(f"Here every sampler runs on one time grid: use the spacing {', '.join(SPACINGS)}.")
    return cast(Spacing, spacing)


def _require_unconditional(pipe: DiffusionPipeline, model: str) -> None:
    """A UNet2DModel alone: diffusers has no pipeline that gives one classes, or learned variances."""
    config = pipe.unet.config
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise ValueError(f"'{model}' needs class labels, which no pipeline of diffusers gives a UNet2DModel.")
    if config.in_channels != config.out_channels or config.sample_size is None:
        raise ValueError(
            f"'{model}' makes {config.out_channels} channels of {config.in_channels} at size {config.sample_size}: "
            "here a model must predict the noise of an image."
        )
