"""Epsilon scaling (Ning et al., 2024, arXiv 2308.15321): the noise prediction is divided by one number, at no cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def epsilon_scaled(network: nn.Module, scale: float) -> Iterator[None]:
    """While entered, the noise that `network` predicts is divided by `scale`; 1 leaves everything as it is.

    The quotient is float32 or better: in bfloat16 a scale near 1 would be rounded away.
    """
    if scale == 1:
        yield
        return

    def divide(module: nn.Module, args: Any, output: Any) -> Any:
        eps = output[0]
        scaled = eps.to(torch.promote_types(eps.dtype, torch.float32)) / scale
        return (scaled, *output[1:]) if isinstance(output, tuple) else type(output)(sample=scaled)

    handle = network.register_forward_hook(divide)
    try:
        yield
    finally:
        handle.remove()
