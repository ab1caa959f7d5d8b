"""What of a network is quantized: which layers, how they are split, which attentions; and what stays in float (4.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from iec.efficient.quantization.attention import OPERANDS, opens_operands
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.layers import QuantizedLayer, channel_axis, operation_of, part_widths

_FIRST_LAST = {
    UNet2DModel: ("conv_in", "conv_out"),
    UNet2DConditionModel: ("conv_in", "conv_out"),
    DiTTransformer2DModel: ("pos_embed.proj", "proj_out_2"),
}
_SIMPLE_BLOCKS = ("", "Attn", "CrossAttn", "SimpleCrossAttn", "Resnet")
#: Blocks whose ResNets make one encoder entry each, or consume one each.
_SPLIT_BLOCKS = {
    f"{kind}{block}"
    for kind in _SIMPLE_BLOCKS
    for block in ("DownBlock2D", "UpBlock2D", "DownsampleBlock2D", "UpsampleBlock2D")
}


@dataclass(frozen=True)
class LayerTarget:
    """One layer: its name, the widths of the parts of its input channels, which axis those are, and its bits."""

    name: str
    widths: tuple[int, ...]
    channel_axis: int
    weights: int
    activations: int

    @property
    def split(self) -> int | None:
        """The width of the main branch, where the input is a concatenation."""
        return None if len(self.widths) == 1 else self.widths[0]

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its activation quantizers."""
        return tuple(f"{self.name}:{part}" for part in range(len(self.widths)))


@dataclass(frozen=True)
class Coverage:
    """layers, attentions: what is quantized, by name. in_float: the layers with a weight matrix, and the attentions,
    that are not."""

    layers: tuple[LayerTarget, ...]
    attentions: tuple[str, ...]
    in_float: tuple[str, ...]
    config: QuantizationConfig

    def bits_of_activations(self) -> dict[str, int]:
        """The bits of every activation quantizer, by its key."""
        bits = {key: layer.activations for layer in self.layers for key in layer.keys}
        for name in self.attentions:
            for operand in OPERANDS:
                of_softmax = operand == "probabilities"
                bits[f"{name}:{operand}"] = self.config.softmax if of_softmax else self.config.activations
        return bits


def coverage(network: nn.Module, config: QuantizationConfig) -> Coverage:
    """What `config` quantizes of `network`.

    Raises TypeError unless it is a `UNet2DModel`, a `UNet2DConditionModel` or a `DiTTransformer2DModel`, ValueError
    where it is quantized already.
    """
    require_float(network)
    edges = next((names for kind, names in _FIRST_LAST.items() if isinstance(network, kind)), None)
    if edges is None:
        known = ", ".join(kind.__name__ for kind in _FIRST_LAST)
        raise TypeError(f"Quantization knows {known}, but the denoiser is a {type(network).__name__}.")
    splits = concatenation_splits(network)
    layers: list[LayerTarget] = []
    attentions: list[str] = []
    in_float: list[str] = []
    for name, module in network.named_modules():
        if operation_of(module) is not None:
            bits = (config.first_last,) * 2 if name in edges else (config.weights, config.activations)
            widths = tuple(part_widths(module, splits.get(module)))
            layers.append(LayerTarget(name, widths, channel_axis(module), *bits))
        elif isinstance(module, Attention):
            (attentions if config.attention and opens_operands(module) else in_float).append(name)
        elif any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
            in_float.append(name)
    return Coverage(tuple(layers), tuple(attentions), tuple(in_float), config)


def concatenation_splits(network: Any) -> dict[nn.Module, int]:
    """The width of the main branch for each layer that consumes [main, skip]: conv1 and the shortcut of up ResNets.

    Empty for a network without such layers, or with blocks that are not known.
    """
    blocks = [*getattr(network, "down_blocks", []), *getattr(network, "up_blocks", [])]
    if not blocks or any(type(block).__name__ not in _SPLIT_BLOCKS for block in blocks):
        return {}
    entries = [network.conv_in.out_channels]
    for block in network.down_blocks:
        entries += [resnet.out_channels for resnet in block.resnets]
        entries += [block.resnets[-1].out_channels] * len(block.downsamplers or ())
    splits = {}
    for block in network.up_blocks:
        for resnet in block.resnets:
            main = resnet.in_channels - entries.pop()
            splits[resnet.conv1] = main
            if resnet.conv_shortcut is not None:
                splits[resnet.conv_shortcut] = main
    return splits


def require_float(network: nn.Module) -> None:
    """Raise ValueError where `network` is quantized."""
    if next(quantized_layers(network), None) is not None:
        raise ValueError("This network is quantized already: remove the quantization first.")


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """The quantized layers of `network`, with their names."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, QuantizedLayer))
