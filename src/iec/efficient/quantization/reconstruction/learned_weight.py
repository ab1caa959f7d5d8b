"""A weight whose rounding is learned."""

from collections.abc import Sequence

import torch
from torch import nn

from iec.efficient.quantization.quantizer import Grid, round_straight_through
from iec.efficient.quantization.reconstruction.rounding import alpha_of, soft_rounding
from iec.efficient.quantization.weights import CodedWeight, QuantizedWeight


class LearnedWeight(QuantizedWeight):
    """floor(w / delta) + h(alpha), clamped to the grid, times delta; at first the weight itself, within the grid.

    Differentiable in alpha, in the zero points, and, straight through the floor, in the weight.
    weight: float32 [O, I, ...]; alphas, zero_points: one per part.
    """

    def __init__(self, weight: torch.Tensor, widths: Sequence[int], grids: Sequence[Grid]) -> None:
        super().__init__(weight, grids)
        self.widths = list(widths)
        self.deltas = [grid.delta for grid in grids]
        self.weight = nn.Parameter(weight.detach().clone())
        self.zero_points = nn.ParameterList([nn.Parameter(grid.zero_point.clone()) for grid in grids])
        scaled = [part / delta for part, delta in zip(self._parts(), self.deltas, strict=True)]
        self.alphas = nn.ParameterList([nn.Parameter(alpha_of(x - x.floor()).detach()) for x in scaled])

    def part(self, index: int) -> torch.Tensor:
        """The softly rounded values of one part."""
        low = -round_straight_through(self.zero_points[index])
        scaled = self._parts()[index] / self.deltas[index]
        floor = scaled + (scaled.floor() - scaled).detach()
        steps = floor + soft_rounding(self.alphas[index])
        return steps.clamp(low, low + self._largest(index)) * self.deltas[index]

    def hardened(self) -> CodedWeight:
        """The same weight with each h rounded: up where alpha >= 0."""
        codes, grids = [], []
        with torch.no_grad():
            for i, part in enumerate(self._parts()):
                zero_point = self.zero_points[i].round().clamp(0, self._largest(i))
                steps = (part / self.deltas[i]).floor() + (self.alphas[i] >= 0)
                codes.append((steps + zero_point).clamp(0, self._largest(i)).to(torch.uint8))
                grids.append(Grid(self.deltas[i], zero_point, self.bits[i]))
        return CodedWeight(codes, grids)

    def _parts(self) -> Sequence[torch.Tensor]:
        return torch.split(self.weight, self.widths, 1)

    def _largest(self, index: int) -> int:
        return (1 << self.bits[index]) - 1
