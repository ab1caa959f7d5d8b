"""Float layers without their weights: what is left of a layer whose weights can be read again."""

import copy

import torch
from torch import nn


def emptied(layer: nn.Module) -> nn.Module:
    """A copy of `layer` with its settings, hooks and flags, whose parameters have a layout but no storage."""
    blank = copy.copy(layer)
    blank._parameters = {
        name: None if own is None else nn.Parameter(torch.empty_like(own, device="meta"), own.requires_grad)
        for name, own in layer._parameters.items()
    }
    return blank


def refill(blank: nn.Module, source: nn.Module, like: torch.Tensor) -> None:
    """Give `blank` the parameters of `source` in its own layout, with the device and dtype of `like`."""
    for name, own in blank._parameters.items():
        if own is not None:
            values = torch.empty_like(own, device=like.device, dtype=like.dtype).copy_(source.get_parameter(name).data)
            blank._parameters[name] = nn.Parameter(values, own.requires_grad)
