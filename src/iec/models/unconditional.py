"""The embedded model's pipeline: the state stays float32 whatever the network's dtype, as diffusers' own does not."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel

from iec.models.denoising import denoise, in_own_dtype, to_output


class UnconditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Unconditional images from a `UNet2DModel` and any scheduler; in float32 equal to `DDIMPipeline` bit for bit."""

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        generator: list[torch.Generator],
        num_inference_steps: int = 50,
        eta: float = 0.0,
        output_type: str = "np",
    ) -> ImagePipelineOutput:
        """Sample one image per generator.

        output_type: `np` for float32 [B, H, W, C] in [0, 1], `pil` for PIL images.
        """
        x = denoise(self, generator, num_inference_steps, eta, in_own_dtype(self.unet))
        return to_output(self, x, output_type)
