"""The shape of the images that a pipeline makes."""

from typing import Any

from diffusers import DiffusionPipeline

from iec.runtime import network_of


def image_shape(pipe: DiffusionPipeline) -> tuple[int, int, int]:
    """(C, H, W) at the pipeline's own size. Raises ValueError where its network does not tell it."""
    config: Any = network_of(pipe).config
    vae: Any = getattr(pipe, "vae", None)
    size = getattr(config, "sample_size", None)
    if size is None:
        raise ValueError(f"The size of this {type(pipe).__name__}'s images cannot be told: its network has none.")
    height, width = map(int, size if isinstance(size, (list, tuple)) else (size, size))
    if vae is None:
        return int(config.in_channels), height, width
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return int(vae.config.out_channels), factor * height, factor * width
