"""The scheduler of the reference: the deployed one's grid with finer steps between its timesteps, more accurate.

Within the fine grid each output is extrapolated by half of its last change (Adams-Bashforth's two-step rule), which
makes the reference of second order at one evaluation a step.
"""

import functools
from typing import Any

import torch

from iec.fitting.noise_levels import FineGrid, refined
from iec.pipelines.scheduler_state import copied_scheduler
from iec.pipelines.step_map import previous_sample
from iec.pipelines.step_trial import step_kind
from iec.pipelines.straight import straight_at
from iec.runtime import subclass
from iec.runtime.schedulers import SpacedDDIMOutput


def require_fittable(scheduler: Any) -> None:
    """Raise ValueError, in one sentence, unless a correction can be fitted to a scheduler whose timesteps are set."""
    name, kind = type(scheduler).__name__, step_kind(scheduler, {})
    if kind.stochastic:
        raise ValueError(
            f"{name} draws noise at its steps, and a correction is fitted to a deterministic trajectory: "
            "use DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler."
        )
    if not kind.affine:
        raise ValueError(
            f"{name} clips or thresholds its predictions, so its steps are not affine in the output: "
            "switch that off (clip_sample=False, thresholding=False)."
        )


def fine_scheduler(scheduler: Any, substeps: int) -> Any:
    """A copy of `scheduler` whose `set_timesteps` refines the grid, and whose `step` is the reference's.

    substeps: at most so many steps in each of the scheduler's own; with 1, its own first-order steps and nothing more.
    `set_timesteps` raises ValueError, before anything is evaluated, for a scheduler that cannot be fitted to.
    """
    inner = copied_scheduler(scheduler)
    base = type(scheduler)

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        inner.set_timesteps(*args, **kwargs)
        require_fittable(inner)
        self.fine_grid = grid = refined(inner, substeps)
        self._last = self._states = None
        if substeps == 1:
            base.set_timesteps(self, *args, **kwargs)
            return
        given = torch.as_tensor(inner.timesteps)
        self.timesteps = torch.tensor(grid.levels.timesteps, dtype=torch.float64, device=given.device).to(given.dtype)
        if getattr(inner, "sigmas", None) is not None:
            self.sigmas = torch.tensor(grid.levels.levels, dtype=inner.sigmas.dtype, device=inner.sigmas.device)
        self.num_inference_steps = inner.num_inference_steps
        self._step_index, self._begin_index = None, 0

    @functools.wraps(base.step)
    def step(
        self: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if substeps == 1:
            stepped = base.step(self, model_output, timestep, sample, *args, **kwargs)
            previous = previous_sample(stepped)
            self._states = (previous, previous)
            return stepped
        grid: FineGrid = self.fine_grid
        i = self._step_index or 0
        dtype = torch.promote_types(sample.dtype, torch.float32)
        state = sample.to(dtype)
        # The state is kept as exact as it was computed, whatever the dtype in which the pipeline carries it.
        if self._states is not None and torch.equal(self._states[0], sample):
            state = self._states[1]
        h = straight_at(inner, lambda: grid.levels.levels[i]).of(model_output.to(dtype), state)
        extrapolated = h if self._last is None else h + (h - self._last) / 2
        if self._last is None or grid.levels.levels[i] != grid.levels.levels[i - 1]:
            self._last = h.clone()
        exact = grid.levels.step(i, state, extrapolated)
        previous = exact.to(sample.dtype)
        self._states, self._step_index = (previous, exact), i + 1
        return SpacedDDIMOutput(previous, previous) if kwargs.get("return_dict", True) else (previous, previous)

    fine = copied_scheduler(scheduler)
    fine.__class__ = subclass(base, set_timesteps=set_timesteps, step=step)
    return fine


def exact_state(scheduler: Any) -> torch.Tensor:
    """The state [B, ...] that a fine scheduler's latest step led to, in float32 or better."""
    assert scheduler._states is not None
    state: torch.Tensor = scheduler._states[1]
    return state.to(torch.promote_types(state.dtype, torch.float32))
