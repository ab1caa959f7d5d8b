"""Latent diffusion as the paper samples it: unconditional (LDM-8, LDM-4), and of a class with guidance (LDM-4-G).

The state stays float32 whatever the network's dtype, and every image has a generator of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel, UNet2DModel, VQModel

from iec.models.class_embedder import ClassEmbedder
from iec.models.denoising import denoise, in_own_dtype, to_output


class LatentPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Unconditional images: a `UNet2DModel` denoises latents, which an autoencoder decodes."""

    model_cpu_offload_seq = "unet->vae"

    def __init__(self, vae: VQModel | AutoencoderKL, unet: UNet2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        generator: list[torch.Generator],
        num_inference_steps: int = 50,
        eta: float = 0.0,
        output_type: str = "np",
    ) -> ImagePipelineOutput:
        """Sample one image per generator.

        output_type: `np` for float32 [B, H, W, C] in [0, 1], `pil` for PIL images, `latent` for x_0 [B, C, H, W].
        """
        x = denoise(self, generator, num_inference_steps, eta, in_own_dtype(self.unet))
        return _decoded(self, x, output_type)


class ClassLatentPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images of given classes: the UNet attends to the class's token, with classifier-free guidance."""

    model_cpu_offload_seq = "class_embedder->unet->vae"

    def __init__(
        self,
        vae: VQModel | AutoencoderKL,
        class_embedder: ClassEmbedder,
        unet: UNet2DConditionModel,
        scheduler: Any,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, class_embedder=class_embedder, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        generator: list[torch.Generator],
        num_inference_steps: int = 250,
        guidance_scale: float = 1.5,
        eta: float = 0.0,
        output_type: str = "np",
    ) -> ImagePipelineOutput:
        """Sample one image per generator.

        class_labels: one class for all images, or one per image.
        guidance_scale: s in e_u + s (e_c - e_u), both halves in one evaluation, [no class; class] (spec section 1.3).
        output_type: as of `LatentPipeline`.
        Raises ValueError for another number of classes than images, or for a class that the model does not have.
        """
        no_class = self.class_embedder.config.num_classes - 1
        labels = [class_labels] * len(generator) if isinstance(class_labels, int) else list(class_labels)
        if len(labels) != len(generator):
            raise ValueError(f"{len(labels)} classes were given for {len(generator)} images: give one, or one each.")
        for label in labels:
            if not 0 <= label < no_class:
                raise ValueError(f"The classes of this model are 0 to {no_class - 1}, but {label} was asked for.")
        pair = torch.tensor([no_class] * len(labels) + labels, device=self._execution_device)
        context = self.class_embedder(pair)

        evaluate = in_own_dtype(self.unet)

        def predict(x: torch.Tensor, t: Any) -> torch.Tensor:
            both = evaluate(torch.cat([x, x]), t, encoder_hidden_states=context)
            without, of_class = both.chunk(2)
            return without + guidance_scale * (of_class - without)

        x = denoise(self, generator, num_inference_steps, eta, predict)
        return _decoded(self, x, output_type)


def _decoded(pipe: DiffusionPipeline, x: torch.Tensor, output_type: str) -> ImagePipelineOutput:
    if output_type == "latent":
        return ImagePipelineOutput(images=x)
    vae = pipe.vae
    images = vae.decode((x / vae.config.scaling_factor).to(vae.dtype)).sample
    return to_output(pipe, images.to(x.dtype), output_type)
