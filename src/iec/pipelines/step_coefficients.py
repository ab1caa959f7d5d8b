"""The affine map that one `scheduler.step` call is, for diagnostics; the correction itself never needs it."""

from dataclasses import dataclass
from typing import Any

import torch

from iec.pipelines.step_map import StepMap

_AFFINE = 1e-4  # relative to the largest value involved: float32 rounding stays below it, clipping does not


@dataclass(frozen=True)
class StepCoefficients:
    """Phi(e) = offset + slope * e, elementwise; both have the shape of the sample.

    offset: A_t x_t, the history's share and the step's noise. slope: B_t, for diffusers' schedulers one number.
    """

    offset: torch.Tensor
    slope: torch.Tensor


def step_coefficients(
    scheduler: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **settings: Any
) -> StepCoefficients:
    """The coefficients of the step that `scheduler.step(model_output, timestep, sample, **settings)` would take.

    Three dry steps find them (Phi(0), Phi(1), and Phi(model_output) to check), in float32 or better; the scheduler
    and every random generator stay as they were. Call it where the pipeline would step: the history counts.

    Raises ValueError where the step is not affine in the model output (it clips, thresholds, or reads a variance from
    it), and IECUnsupportedError where the scheduler's step cannot be taken again (paper Eq. 10: A_t, B_t).
    """
    step_map = StepMap(scheduler, scheduler.step, (model_output, timestep, sample), settings)
    offset = step_map.dry(torch.zeros_like(model_output))
    slope = step_map.dry(torch.ones_like(model_output)) - offset
    if model_output.shape == sample.shape:
        difference = step_map.dry(model_output) - (offset + slope * model_output)
        scale = max(1.0, offset.abs().max().item(), (slope * model_output).abs().max().item())
        if difference.abs().max() <= _AFFINE * scale:
            return StepCoefficients(offset, slope)
    raise ValueError(
        f"This step of {type(scheduler).__name__} is not affine in the model output (it clips, thresholds, or reads "
        "a variance from it), so it has no coefficients."
    )
