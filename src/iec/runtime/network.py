"""The denoising network among a pipeline's components."""

from typing import Any

from torch import nn


def network_of(pipe: Any) -> nn.Module:
    """The pipeline's `unet` or `transformer`. Raises ValueError where it has neither."""
    for name in ("unet", "transformer"):
        network = getattr(pipe, name, None)
        if isinstance(network, nn.Module):
            return network
    raise ValueError(f"This {type(pipe).__name__} has no 'unet' or 'transformer' to evaluate.")
