"""Quantized weights: packed into bytes, or simulated beside the float weight; both give the same bits on use."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.quantizer import Grid, dequantize, fake_quantize, quantize


class QuantizedWeight(nn.Module):
    """A weight [O, I, ...] whose input channels are split into parts, each on grids of its own, one per channel of O.

    `forward(dtype)` gives the values on the grids in that dtype.
    """

    def __init__(self, weight: torch.Tensor, grids: Sequence[Grid]) -> None:
        super().__init__()
        self.bits = [grid.bits for grid in grids]
        for i, grid in enumerate(grids):
            self.register_buffer(f"delta_{i}", grid.delta.to(weight.device, torch.float32))
            # A whole number of at most 8 bits.
            self.register_buffer(f"zero_point_{i}", grid.zero_point.to(weight.device, torch.uint8))

    def grid(self, part: int) -> Grid:
        """The grids of one part, [O, 1, ...]."""
        delta, zero_point = getattr(self, f"delta_{part}"), getattr(self, f"zero_point_{part}")
        return Grid(delta.float(), zero_point.float(), self.bits[part])

    def part(self, index: int) -> torch.Tensor:
        """The values of one part, float32."""
        raise NotImplementedError

    def forward(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        parts = [self.part(i) for i in range(len(self.bits))]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).to(dtype)


class SimulatedWeight(QuantizedWeight):
    """The float weight of `layer`, put on its grids at every use: for calibration and reconstruction."""

    def __init__(self, layer: Any, widths: Sequence[int], grids: Sequence[Grid]) -> None:
        super().__init__(layer.weight, grids)
        self.layer = layer
        self.widths = list(widths)

    def part(self, index: int) -> torch.Tensor:
        start = sum(self.widths[:index])
        own: torch.Tensor = self.layer.weight.narrow(1, start, self.widths[index])
        return fake_quantize(own.float(), self.grid(index))


class CodedWeight(QuantizedWeight):
    """The codes of each part (uint8), a byte each: those that reconstruction found, in simulated arithmetic."""

    def __init__(self, codes: Sequence[torch.Tensor], grids: Sequence[Grid]) -> None:
        super().__init__(codes[0], grids)
        for i, own in enumerate(codes):
            self.register_buffer(f"codes_{i}", own.clone())

    def codes(self, index: int) -> torch.Tensor:
        """The codes of one part, uint8."""
        codes: torch.Tensor = getattr(self, f"codes_{index}")
        return codes

    def part(self, index: int) -> torch.Tensor:
        return dequantize(self.codes(index), self.grid(index))


class PackedWeight(QuantizedWeight):
    """The codes alone: a byte each, or half a byte where 4 bits suffice."""

    def __init__(self, codes: Sequence[torch.Tensor], grids: Sequence[Grid]) -> None:
        super().__init__(codes[0], grids)
        self.shapes = [own.shape for own in codes]
        for i, (own, grid) in enumerate(zip(codes, grids, strict=True)):
            self.register_buffer(f"codes_{i}", pack_halves(own) if grid.bits <= 4 else own.clone())

    def part(self, index: int) -> torch.Tensor:
        codes = getattr(self, f"codes_{index}")
        if self.bits[index] <= 4:
            codes = unpack_halves(codes, self.shapes[index])
        return dequantize(codes, self.grid(index))


def nearest_codes(weight: torch.Tensor, widths: Sequence[int], grids: Sequence[Grid]) -> list[torch.Tensor]:
    """The codes (uint8) of each part of `weight` [O, I, ...], rounded to the nearest."""
    parts = torch.split(weight.detach(), list(widths), 1)
    return [quantize(part, grid) for part, grid in zip(parts, grids, strict=True)]


def pack_halves(codes: torch.Tensor) -> torch.Tensor:
    """Codes below 16, two to a byte, the first in the low half; uint8 [ceil(n / 2)]."""
    flat = codes.flatten()
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[::2] | flat[1::2] << 4


def unpack_halves(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """What `pack_halves` packed, in its shape."""
    return torch.stack([packed & 15, packed >> 4], 1).flatten()[: shape.numel()].view(shape)
