"""The uniform affine quantizer: b bits, asymmetric, per tensor or per output channel (spec 4.1).

A grid holds the 2^b values (code - zero_point) * delta, code = 0 .. 2^b - 1. Zero is always one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class Grid:
    """One grid, or one per channel or per step.

    delta: the spacing, above 0. zero_point: the code of zero, a whole number in 0 .. 2^bits - 1. Both float32, of one
    shape that broadcasts against what is quantized: [] per tensor, [O, 1, ...] per output channel.
    """

    delta: torch.Tensor
    zero_point: torch.Tensor
    bits: int

    @property
    def largest_code(self) -> int:
        """2^bits - 1."""
        return (1 << self.bits) - 1


def require_bits(bits: int, name: str = "bits") -> None:
    """Raise TypeError or ValueError unless `bits` is a whole number in 2..8."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{name} must be an integer, but is {bits!r}.")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{name} must lie in {MIN_BITS}..{MAX_BITS}, but is {bits}.")


def grid_of_range(low: torch.Tensor, high: torch.Tensor, bits: int) -> Grid:
    """The grid whose values span [low, high], widened to hold zero; low and high of one shape.

    A range of no width holds zero alone; its delta is 1, which reproduces zero exactly.
    """
    require_bits(bits)
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    delta = (high - low) / (2**bits - 1)
    # A width that float32 cannot divide, as that of a channel of zeros, has nothing to resolve.
    delta = torch.where(delta < torch.finfo(torch.float32).tiny, torch.ones_like(delta), delta)
    return Grid(delta, torch.round(low.abs() / delta).clamp(0, 2**bits - 1), bits)


def round_straight_through(x: torch.Tensor) -> torch.Tensor:
    """Round half to even; the gradient passes as if nothing had been rounded."""
    return x + (torch.round(x) - x).detach()


def quantize(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The codes of `x`, uint8, of its shape: clamp(round(x / delta) + zero_point, 0, 2^b - 1)."""
    codes = torch.round(x.float() / grid.delta) + grid.zero_point
    return codes.clamp(0, grid.largest_code).to(torch.uint8)


def dequantize(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The values of codes (uint8): (code - zero_point) * delta, float32."""
    return (codes - grid.zero_point) * grid.delta


def fake_quantize(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The grid's value nearest to each value of `x`, in its dtype; NaN stays NaN.

    Differentiable in `x`, delta and zero_point by straight-through rounding. Equal to `dequantize(quantize(x))` bit
    for bit.
    """
    # Clamping at the shifted bounds spares adding the zero point and taking it off again.
    if not torch.is_grad_enabled():
        # More new tensors for every activation would cost more than the arithmetic.
        low = -grid.zero_point
        steps = x.to(torch.float32, copy=True).div_(grid.delta).round_()
        # `clamp_` with tensors for bounds takes four times as long on a CPU.
        torch.maximum(steps, low, out=steps)
        torch.minimum(steps, low + grid.largest_code, out=steps)
        return steps.mul_(grid.delta).to(x.dtype)
    apply: Callable[..., torch.Tensor] = _FakeQuantize.apply
    return apply(x.float(), grid.delta, grid.zero_point, grid.largest_code).to(x.dtype)


class _FakeQuantize(torch.autograd.Function):
    """`fake_quantize` in float32 with its gradients in few passes over the values, which cost most.

    d/dx is 1 inside the grid's range, and 0 outside, where d/d zero_point is -delta. d/d delta is what rounding added
    to x / delta inside, and the step at the end of the range outside.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, delta: torch.Tensor, zero_point: torch.Tensor, largest: int) -> torch.Tensor:
        low = -torch.round(zero_point)
        scaled = x / delta
        rounded = torch.round(scaled)
        steps = rounded.clamp(low, low + largest)
        inside = rounded == steps
        by_delta = steps - torch.where(inside, scaled, 0)
        ctx.save_for_backward(inside, by_delta, delta)
        return steps.mul_(delta)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        inside, by_delta, delta = ctx.saved_tensors
        needs_x, needs_delta, needs_zero_point, _ = ctx.needs_input_grad
        of_x = gradient * inside if needs_x else None
        of_delta = (gradient * by_delta).sum_to_size(delta.shape) if needs_delta else None
        outside = torch.where(inside, 0, gradient).sum_to_size(delta.shape) if needs_zero_point else None
        return of_x, of_delta, None if outside is None else -delta * outside, None
