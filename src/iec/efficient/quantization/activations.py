"""An activation quantizer with one grid per sampling step, or per group of steps."""

import math

import torch
from torch import nn

from iec.efficient.quantization.quantizer import Grid, fake_quantize
from iec.method.clock import current_clock


class StepQuantizer(nn.Module):
    """Puts an activation on the grid of the current step, which the run's clock knows.

    grid: delta and zero_point [ceil(num_steps / steps_per_group)]; step i uses entry i // steps_per_group.
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
        group = step_of_run(self.num_steps) // self.steps_per_group
        return fake_quantize(x, Grid(self.delta[group].float(), self.zero_point[group].float(), self.bits))


def count_groups(num_steps: int, steps_per_group: int) -> int:
    """How many grids `num_steps` steps need. Raises ValueError where either is below 1."""
    if num_steps < 1 or steps_per_group < 1:
        raise ValueError(
            f"The steps and the steps per group must be at least 1, but are {num_steps} and {steps_per_group}."
        )
    return math.ceil(num_steps / steps_per_group)


def step_of_run(num_steps: int) -> int:
    """The current step of a run of `num_steps`. Raises ValueError in a run of another length."""
    clock = current_clock()
    require_steps(num_steps, clock.num_steps)
    return clock.step


def require_steps(calibrated: int, num_steps: int) -> None:
    """Raise ValueError unless a run has as many steps as the model is quantized for."""
    if num_steps != calibrated:
        raise ValueError(
            f"This model is quantized for {calibrated} steps, but the run has {num_steps}: "
            f"sample with {calibrated} steps, or calibrate again."
        )
