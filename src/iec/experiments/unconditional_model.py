"""A user's model as experiments sample it: an unconditional UNet under DDIM with one of the paper's spacings."""

from typing import cast

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from iec.method.ddim import SPACINGS, Spacing
from iec.models.loading import load_pipeline
from iec.models.unconditional import UnconditionalPipeline


def load_unconditional(model: str, dtype: torch.dtype, spacing: str, device: str = "cpu") -> UnconditionalPipeline:
    """The network and noise schedule of a diffusers folder or hub name, under DDIM with this spacing.

    Raises ValueError, in one sentence, for a model that cannot be sampled so, or whose images our CIFAR-10 network
    cannot judge.
    """
    pipe = load_pipeline(model, dtype, device, require_spacing(spacing))
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
    unet = getattr(pipe, "unet", None)
    others = sorted(set(pipe.components) - {"unet", "scheduler"})
    if not isinstance(unet, UNet2DModel) or others:
        raise ValueError(
            f"'{model}' is a {type(pipe).__name__}: here a model must be an unconditional UNet2DModel with a scheduler."
        )
    config = unet.config
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise ValueError(f"'{model}' needs class labels: here a model must be unconditional.")
    shape = (config.in_channels, config.out_channels, config.sample_size)
    if shape not in ((3, 3, 32), (3, 3, [32, 32]), (3, 3, (32, 32))):
        raise ValueError(
            f"'{model}' makes {config.in_channels} to {config.out_channels} channels at size {config.sample_size}, but "
            "our CIFAR-10 network, which judges here, takes 3 channels at size 32."
        )
    if pipe.scheduler.config.prediction_type != "epsilon":
        raise ValueError(
            f"'{model}' predicts '{pipe.scheduler.config.prediction_type}': here a model must predict the noise."
        )
