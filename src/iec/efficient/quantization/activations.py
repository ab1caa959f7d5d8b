"""An activation quantizer with one grid per sampling step, or per group of steps."""

import math

import torch
from torch import nn

from iec.efficient.quantization.quantizer import Grid, fake_quantize
from iec.method.clock import current_clock


class StepQuantizer(nn.Module):
    """Puts an activation [B, ...] on the grid of the run's current step, or of each sample's own.

    grid: delta and zero_point [ceil(num_steps / steps_per_group)]; step i uses entry i // steps_per_group.
    Where the clock's batch mixes steps, B may be a multiple of the samples: as many rows in a row for each.
    Raises ValueError where the numbers do not fit, or in a run of another length; RuntimeError outside a run.
    """

    delta: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, grid: Grid, num_steps: int, steps_per_group: int = 1) -> None:
        super().__init__()
        groups = count_groups(num_steps, steps_per_group)
        if grid.delta.shape != (groups,) or grid.zero_point.shape != (groups,):
            raise ValueError(
                f"{num_steps} steps in groups of {steps_per_group} need {groups} grids, "
                f"but delta has shape {list(grid.delta.shape)} and zero_point {list(grid.zero_point.shape)}."
            )
        self.bits, self.num_steps, self.steps_per_group = grid.bits, num_steps, steps_per_group
        self.register_buffer("delta", grid.delta.clone())
        self.register_buffer("zero_point", grid.zero_point.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sample_steps = current_clock().sample_steps
        if sample_steps is None:
            group: int | torch.Tensor = step_of_run(self.num_steps) // self.steps_per_group
            return fake_quantize(x, self.grid(group))
        require_steps(self.num_steps, current_clock().num_steps)
        group = sample_steps.repeat_interleave(len(x) // len(sample_steps)) // self.steps_per_group
        own = self.grid(group)
        shape = (-1, *[1] * (x.dim() - 1))
        return fake_quantize(x, Grid(own.delta.view(shape), own.zero_point.view(shape), self.bits))

    def grid(self, groups: int | torch.Tensor | slice = slice(None)) -> Grid:
        """The grids of these groups of steps, by default all."""
        return Grid(self.delta[groups].float(), self.zero_point[groups].float(), self.bits)


def count_groups(num_steps: int, steps_per_group: int) -> int:
    """How many grids `num_steps` steps need. Raises ValueError where either is below 1."""
    if num_steps < 1 or steps_per_group < 1:
        raise ValueError(
            f"The steps and the steps per group must be at least 1, but are {num_steps} and {steps_per_group}."
        )
    return math.ceil(num_steps / steps_per_group)


def step_of_run(num_steps: int) -> int:
    """The current step of a run of `num_steps`.

    Raises ValueError in a run of another length, RuntimeError where the batch mixes steps.
    """
    clock = current_clock()
    if clock.sample_steps is not None:
        raise RuntimeError("This batch mixes steps: nothing in it may depend on one step alone.")
    require_steps(num_steps, clock.num_steps)
    return clock.step


def require_steps(calibrated: int, num_steps: int) -> None:
    """Raise ValueError unless a run has as many steps as the model is quantized for."""
    if num_steps != calibrated:
        raise ValueError(
            f"This model is calibrated for {calibrated} steps, but the run has {num_steps}: "
            f"sample with {calibrated} steps, or calibrate again."
        )
