"""Convolutions and linear layers in simulated arithmetic: values on integer grids, computed in float.

A layer that consumes a concatenation is split at the width of the main branch: both halves have weight and
activation grids of their own, and one convolution computes both.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from iec.efficient.quantization.activations import StepQuantizer, step_of_run
from iec.efficient.quantization.emptied import emptied, refill
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.weights import (
    CodedWeight,
    PackedWeight,
    QuantizedWeight,
    SimulatedWeight,
    nearest_codes,
)

Storage = Literal["simulate", "packed"]
Operation = Callable[..., torch.Tensor]

_CONVOLUTIONS: dict[type[nn.Module], Operation] = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d}


@dataclass(frozen=True)
class Reconstructed:
    """What reconstruction found of one layer: the codes of each part of its weight, uint8 [O, I, ...], and its bias,

    None where the layer's own stays.
    """

    codes: list[torch.Tensor]
    bias: torch.Tensor | None = None


class QuantizedLayer(nn.Module):
    """What stands for a convolution or a linear layer: y = op(quantized input, quantized weight) + bias.

    weight: the weight on its grids. inputs: one activation quantizer per part of the input channels.
    reconstructed: codes and bias in the place of the layer's weight, rounded to the nearest, and its bias.
    original: the float layer, kept so that it can be put back; None where only the codes remain.
    """

    blank: nn.Module
    like: torch.Tensor
    scale: torch.Tensor | None
    shift: torch.Tensor | None

    def __init__(
        self,
        layer: Any,
        weight_grids: Sequence[Grid],
        inputs: Sequence[StepQuantizer],
        split: int | None = None,
        storage: Storage = "simulate",
        keep_original: bool | None = True,
        reconstructed: Reconstructed | None = None,
    ) -> None:
        super().__init__()
        operation = operation_of(layer)
        if operation is None:
            raise ValueError(f"A {type(layer).__name__} cannot be quantized.")
        self.operation = operation
        self.widths = part_widths(layer, split)
        if not len(self.widths) == len(weight_grids) == len(inputs):
            raise ValueError(
                f"A layer with {len(self.widths)} parts needs as many grids for its weight and its input, "
                f"but got {len(weight_grids)} and {len(inputs)}."
            )
        self.weight: QuantizedWeight
        codes = None if reconstructed is None else [own.to(layer.weight.device) for own in reconstructed.codes]
        if storage == "packed":
            self.weight = PackedWeight(codes or nearest_codes(layer.weight, self.widths, weight_grids), weight_grids)
        elif codes is not None:
            self.weight = CodedWeight(codes, weight_grids)
        else:
            self.weight = SimulatedWeight(layer, self.widths, weight_grids)
        self.bias: nn.Parameter | None = layer.bias
        if reconstructed is not None and reconstructed.bias is not None:
            self.bias = nn.Parameter(reconstructed.bias.to(layer.bias), requires_grad=False)
        self.inputs = nn.ModuleList(inputs)
        self.original: nn.Module | None = layer if keep_original or storage == "simulate" else None
        if self.original is None:
            # Past nn.Module, which could not move it to another device.
            self.__dict__["blank"] = emptied(layer)
            self.register_buffer("like", layer.weight.new_empty(0), persistent=False)
        self.channel_axis = channel_axis(layer)
        self.train(layer.training)
        self.set_correction(None, None)

    def set_correction(self, scale: torch.Tensor | None, shift: torch.Tensor | None) -> None:
        """Shift the outputs, and scale those that the first part contributes; both [T, O] (DEC, spec 3.3).

        Without a scale it is a correction of the bias. Raises ValueError for a scale without a shift, or without parts.
        """
        if scale is not None and (shift is None or len(self.widths) == 1):
            raise ValueError("A correction's scale needs a shift, and a layer that is split.")
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight(x.dtype)
        bias: torch.Tensor | None = self.bias
        if self.shift is not None:
            step = step_of_run(len(self.shift))
            shift = self.shift[step].to(x.dtype)
            bias = shift if bias is None else bias + shift
            if self.scale is not None:
                factor = self.scale[step].to(x.dtype).view(-1, *[1] * (weight.dim() - 1))
                first = factor * weight[:, : self.widths[0]]
                weight = torch.cat([first, weight[:, self.widths[0] :]], 1)
        return self.operation(self.quantize_input(x), weight, bias)

    def restored(self, source: nn.Module | None) -> nn.Module:
        """The float layer: the one that was kept, or what was left of it with the weights of `source`."""
        if self.original is not None:
            return self.original
        assert source is not None
        refill(self.blank, source, self.like)
        self.blank.train(self.training)
        return self.blank

    def quantize_input(self, x: torch.Tensor) -> torch.Tensor:
        """`x` on the grids of the current step."""
        if len(self.inputs) == 1:
            quantized: torch.Tensor = self.inputs[0](x)
            return quantized
        parts = torch.split(x, self.widths, self.channel_axis)
        return torch.cat(
            [quantizer(part) for quantizer, part in zip(self.inputs, parts, strict=True)], self.channel_axis
        )


def operation_of(layer: Any) -> Operation | None:
    """The function (input, weight, bias) that `layer` computes, or None where it is not one that can be quantized."""
    if type(layer) is nn.Linear:
        return functional.linear
    function = _CONVOLUTIONS.get(type(layer))
    if function is None or layer.padding_mode != "zeros":
        return None
    settings: dict[str, Any] = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return functools.partial(function, **settings)


def channel_axis(layer: Any) -> int:
    """The axis of its input, from the end, that holds the channels."""
    return 1 - int(layer.weight.dim())


def part_widths(layer: Any, split: int | None) -> list[int]:
    """The input channels of each part, of the weight's second axis. Raises ValueError where `split` does not fit."""
    width = int(layer.weight.shape[1])
    if split is None:
        return [width]
    if not 0 < split < width or getattr(layer, "groups", 1) != 1:
        raise ValueError(f"A {type(layer).__name__} with {width} input channels cannot be split at {split}.")
    return [split, width - split]
