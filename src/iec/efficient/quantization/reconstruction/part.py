"""What was found of one unit, as a part of its plan."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.attention import OPERANDS, OperandProcessor
from iec.efficient.quantization.layers import QuantizedLayer, Reconstructed
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.reconstruction.record import UnitRecord
from iec.efficient.quantization.weights import CodedWeight


def part_of(plan: QuantizationPlan, name: str, unit: nn.Module, record: UnitRecord) -> QuantizationPlan:
    """The plan of the layers and attentions inside `unit` alone; a unit that was not kept has none."""
    weights: dict[str, list[Grid]] = {}
    activations: dict[str, Grid] = {}
    reconstructed: dict[str, Reconstructed] = {}
    for inner, module in unit.named_modules() if record.kept else ():
        full = f"{name}.{inner}" if inner else name
        processor = getattr(module, "processor", None)
        if isinstance(module, QuantizedLayer) and isinstance(module.weight, CodedWeight):
            parts = range(len(module.widths))
            weights[full] = [_stored(module.weight.grid(part)) for part in parts]
            codes = [module.weight.codes(part).cpu().contiguous() for part in parts]
            reconstructed[full] = Reconstructed(codes, _changed_bias(module))
            quantizers: Any = enumerate(module.inputs)
        elif isinstance(processor, OperandProcessor):
            quantizers = ((operand, processor.operands[operand]) for operand in OPERANDS)
        else:
            continue
        activations |= {f"{full}:{key}": _stored(quantizer.grid()) for key, quantizer in quantizers}
    return replace(plan, weights=weights, activations=activations, reconstructed=reconstructed, units=(record,))


def _changed_bias(layer: QuantizedLayer) -> torch.Tensor | None:
    original: Any = layer.original
    if layer.bias is None or torch.equal(layer.bias, original.bias):
        return None
    return layer.bias.detach().cpu().clone()


def _stored(grid: Grid) -> Grid:
    return Grid(grid.delta.detach().cpu().clone(), grid.zero_point.detach().cpu().clone(), grid.bits)
