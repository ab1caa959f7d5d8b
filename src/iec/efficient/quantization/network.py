"""A network's layers and attentions replaced by quantized ones, and put back bit for bit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.activations import StepQuantizer
from iec.efficient.quantization.attention import OPERANDS, OperandProcessor
from iec.efficient.quantization.coverage import Coverage, quantized_layers, require_float
from iec.efficient.quantization.layers import QuantizedLayer, Reconstructed
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.ranges import search_weight


@dataclass(frozen=True)
class Quantized:
    """What became of a network: the names of the quantized layers and attentions, and of those that stay in float."""

    layers: tuple[str, ...]
    attentions: tuple[str, ...]
    in_float: tuple[str, ...]


def search_weights(network: nn.Module, covered: Coverage) -> dict[str, list[Grid]]:
    """The weight grids of every covered layer, one per part, by the layer's name; they need no data."""
    grids = {}
    for target in covered.layers:
        weight: Any = network.get_submodule(target.name).weight
        parts = torch.split(weight.detach(), list(target.widths), 1)
        grids[target.name] = [search_weight(part, target.weights) for part in parts]
    return grids


def quantize_network(
    network: nn.Module,
    covered: Coverage,
    weight_grids: Mapping[str, Sequence[Grid]],
    activation_grids: Mapping[str, Grid],
    num_steps: int,
    reconstructed: Mapping[str, Reconstructed] | None = None,
) -> Quantized:
    """Replace, in `network`, what is covered and has activation grids; what has none was never run, and stays float.

    weight_grids: by layer name, one per part. activation_grids: by key, delta and zero_point [groups of steps].
    reconstructed: by layer name, of the layers whose weights are not rounded to the nearest.
    Raises ValueError, before anything is changed, where grids are missing or do not fit, or it is quantized already.
    """
    require_float(network)
    layers: dict[nn.Module, nn.Module] = {}
    quantized, in_float = [], list(covered.in_float)
    for target in covered.layers:
        if _complete(target.name, target.keys, activation_grids):
            found = (reconstructed or {}).get(target.name)
            copy = quantized_copy(network, covered, target.name, weight_grids, activation_grids, num_steps, found)
            layers[network.get_submodule(target.name)] = copy
            quantized.append(target.name)
        else:
            in_float.append(target.name)
    attentions: dict[str, OperandProcessor] = {}
    for name in covered.attentions:
        keys = [f"{name}:{operand}" for operand in OPERANDS]
        if _complete(name, keys, activation_grids):
            attention: Any = network.get_submodule(name)
            operands = dict(zip(OPERANDS, _quantizers(covered, keys, activation_grids, num_steps), strict=True))
            attentions[name] = OperandProcessor(operands, attention.processor).to(_device_of(attention))
    for name, processor in attentions.items():
        set_processor(network.get_submodule(name), processor)
    replace_modules(network, layers)
    return Quantized(tuple(quantized), tuple(attentions), tuple(in_float))


def quantized_copy(
    network: nn.Module,
    covered: Coverage,
    name: str,
    weight_grids: Mapping[str, Sequence[Grid]],
    activation_grids: Mapping[str, Grid],
    num_steps: int,
    reconstructed: Reconstructed | None = None,
) -> QuantizedLayer:
    """The quantized layer that stands for the layer `name`, with the arguments of `quantize_network`."""
    (target,) = (target for target in covered.layers if target.name == name)
    layer, config = network.get_submodule(name), covered.config
    quantizers = _quantizers(covered, target.keys, activation_grids, num_steps)
    inputs = [quantizer.to(_device_of(layer)) for quantizer in quantizers]
    return QuantizedLayer(
        layer, weight_grids[name], inputs, target.split, config.storage, config.keep_original, reconstructed
    )


def restore_network(network: nn.Module, read: Callable[[], nn.Module] | None = None) -> None:
    """Put back what `quantize_network` replaced, the very same modules; a float network is left alone.

    read: gives the float network, for layers that were not kept. Raises ValueError, before anything is changed, where
    it cannot, or is needed and None.
    """
    quantized = dict(quantized_layers(network))
    source: nn.Module | None = None
    if any(layer.original is None for layer in quantized.values()):
        if read is None:
            raise ValueError("The float weights of this network were not kept, so it cannot be restored.")
        source = read()
    layers: dict[nn.Module, nn.Module] = {
        layer: layer.restored(None if source is None else source.get_submodule(name))
        for name, layer in quantized.items()
    }
    for module in list(network.modules()):
        processor = getattr(module, "processor", None)
        if isinstance(processor, OperandProcessor):
            set_processor(module, processor.original)
    replace_modules(network, layers)


def stored_bytes(network: nn.Module) -> int:
    """The bytes of all parameters and buffers of `network`, each storage counted once."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def set_processor(attention: Any, processor: Any) -> None:
    """Make `processor` the processor of a diffusers attention, whether it is a module or not."""
    # `Attention.set_processor` would log that trained weights are removed.
    attention._modules.pop("processor", None)
    attention.__dict__.pop("processor", None)
    attention.processor = processor


def replace_modules(network: nn.Module, by: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the places of some in `network`, under all their names."""
    # One layer may be a child under several names, as diffusers' downsamplers are.
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in by:
                parent._modules[name] = by[child]


def _quantizers(
    covered: Coverage, keys: Sequence[str], grids: Mapping[str, Grid], num_steps: int
) -> list[StepQuantizer]:
    return [StepQuantizer(grids[key], num_steps, covered.config.steps_per_group) for key in keys]


def _complete(name: str, keys: Sequence[str], grids: Mapping[str, Grid]) -> bool:
    missing = [key for key in keys if key not in grids]
    if missing and len(missing) < len(keys):
        raise ValueError(f"'{name}' has some activation grids, but lacks '{missing[0]}'.")
    return not missing


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
