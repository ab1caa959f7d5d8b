"""CompVis latent-diffusion checkpoints, rewritten for diffusers' classes."""

from iec.models.compvis.autoencoder import convert_autoencoder
from iec.models.compvis.convert import convert_checkpoint
from iec.models.compvis.unet import convert_unet

__all__ = ["convert_autoencoder", "convert_checkpoint", "convert_unet"]
