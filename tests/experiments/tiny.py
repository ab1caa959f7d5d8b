"""A model for the experiments: small, but with images of the size that the feature network takes."""

from tiny_models import tiny_unet

from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler


def tiny_pipeline(spacing="quad", **settings):
    """Stands for `load_pipeline`."""
    unet = tiny_unet(sample_size=32, block_out_channels=(4, 4), norm_num_groups=2)
    pipe = UnconditionalPipeline(unet, SpacedDDIMScheduler(spacing=spacing))
    pipe.set_progress_bar_config(disable=True)
    return pipe
