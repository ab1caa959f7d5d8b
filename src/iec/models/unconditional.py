"""The embedded model's pipeline: the state stays float32 whatever the network's dtype, as diffusers' own does not."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel

from iec.method.noise import initial_noise


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
        config = self.unet.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        x = initial_noise(generator, shape).to(self._execution_device)
        noise = {"eta": eta, "generator": generator} if eta else {}
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            eps = self.unet(x.to(self.unet.dtype), t).sample.to(x.dtype)
            x = self.scheduler.step(eps, t, x, **noise).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(images) if output_type == "pil" else images)
