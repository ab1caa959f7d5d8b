"""The units that are reconstructed one after another."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from iec.efficient.quantization.reconstruction.config import Granularity

_BLOCKS = (BasicTransformerBlock, ResnetBlock2D, Attention)


def units_of(network: nn.Module, layers: Iterable[str], granularity: Granularity) -> dict[str, tuple[str, ...]]:
    """The names of the units that hold the named layers, and which layers each holds.

    A block is the outermost ResNet, transformer or attention block around a layer; a layer outside these is its own.
    """
    # DiT reaches into its first transformer block for an embedding, so its attentions are the blocks there.
    blocks = _BLOCKS[1:] if isinstance(network, DiTTransformer2DModel) else _BLOCKS
    units: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        name = layer
        if granularity == "block":
            parts = layer.split(".")
            around = (".".join(parts[:i]) for i in range(1, len(parts)))
            name = next((n for n in around if isinstance(network.get_submodule(n), blocks)), layer)
        units[name] = (*units.get(name, ()), layer)
    return units


def frozen_copy(network: nn.Module) -> Any:
    """A copy for evaluation in float32, not trained; weights that are float32 already are shared, not copied."""

    def frozen(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach()
        return own.float() if own.is_floating_point() else own

    memo: dict[int, Any] = {id(p): nn.Parameter(frozen(p), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, memo).eval()
