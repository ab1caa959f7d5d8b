"""The loop over steps that our pipelines share: the state stays float32 whatever the network's dtype."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

from iec.method.noise import initial_noise


def denoise(
    pipe: DiffusionPipeline,
    generator: list[torch.Generator],
    num_inference_steps: int,
    eta: float,
    predict: Callable[[torch.Tensor, Any], torch.Tensor],
) -> torch.Tensor:
    """x_0 [B, C, H, W] in float32, one sample per generator; `predict(x, t)` is the pipeline's noise prediction."""
    config = pipe.unet.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    pipe.scheduler.set_timesteps(num_inference_steps)
    x: torch.Tensor = initial_noise(generator, shape).to(pipe._execution_device) * pipe.scheduler.init_noise_sigma
    noise = {"eta": eta, "generator": generator} if eta else {}
    for t in pipe.progress_bar(pipe.scheduler.timesteps):
        eps = predict(pipe.scheduler.scale_model_input(x, t), t)
        x = pipe.scheduler.step(eps, t, x, **noise).prev_sample
    return x


def in_own_dtype(unet: Any) -> Callable[..., torch.Tensor]:
    """(x, t, **conditioning) -> the network's output in the dtype of x, computed in its own."""
    dtype = unet.dtype  # asked once: diffusers walks through all modules for it

    def evaluate(x: torch.Tensor, t: Any, **conditioning: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = unet(x.to(dtype), t, **conditioning).sample
        return output.to(x.dtype)

    return evaluate


def to_output(pipe: DiffusionPipeline, x: torch.Tensor, output_type: str) -> ImagePipelineOutput:
    """`x` in [-1, 1], [B, C, H, W], as images: PIL for `pil`, otherwise float32 [B, H, W, C] in [0, 1]."""
    images = (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
    return ImagePipelineOutput(images=pipe.numpy_to_pil(images) if output_type == "pil" else images)
