"""The closed-loop fit: at every step the numbers that bring the states nearest to the reference's, then the step.

theta_i = argmin sum_n || x*_{i+1} - S_i(x_i, h_i) - sum_k theta_k B_i f_k ||^2, with all earlier steps corrected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from iec.efficient.lockstep import wait_for_all
from iec.fitting.least_squares import NormalEquations
from iec.fitting.reference import ReferenceStates
from iec.method.calibrated import StepCoefficients
from iec.method.clock import Clock
from iec.method.output_history import OutputHistory, correction_term, differences, features
from iec.pipelines.caches import CacheAdapter, cache_adapters
from iec.pipelines.deployment import denoisers
from iec.pipelines.errors import IECUnsupportedError
from iec.pipelines.step_map import StepMap, previous_sample, timestep_number
from iec.pipelines.straight import straight
from iec.runtime import Part, Participant, Run, Sampler


@dataclass(frozen=True)
class Candidate:
    """What a fit may use: m differences in so many bands, and a constant per channel or none."""

    history: int
    bands: int = 1
    bias: bool = False


class OutputFit:
    """The numbers of one candidate as they are found, step by step, and the errors of the final states.

    held_out: from this trajectory on, nothing is fitted to them. fresh_caches: what third-party caches hold before a
    run, as of `CacheStates`. channel_axis, grid: as of `StepCoefficients`.
    """

    def __init__(
        self,
        candidate: Candidate,
        reference: ReferenceStates,
        held_out: int,
        channel_axis: int,
        grid: tuple[int, int] | None,
        fresh_caches: list[Any],
    ) -> None:
        self.fresh_caches = fresh_caches
        self.candidate, self.reference, self.held_out = candidate, reference, held_out
        self.channel_axis, self.grid = channel_axis, grid
        self.sampler: Sampler | None = None
        self.coefficients: list[torch.Tensor] = []
        self.constants: list[torch.Tensor] = []
        self.full_steps: list[bool] = []
        self.errors: dict[int, torch.Tensor] = {}
        self._equations: NormalEquations | None = None

    def add(self, target: torch.Tensor, slope: torch.Tensor, outputs: list[torch.Tensor], first: int) -> None:
        """Count a batch, whose first trajectory is `first`, in the equations of the current step."""
        candidate = self.candidate
        if self._equations is None:
            channels = target.shape[self.channel_axis] if candidate.bias else 0
            self._equations = NormalEquations(candidate.history * candidate.bands, channels)
        count = max(0, min(len(target), self.held_out - first))
        if not count:
            return
        parts = [
            band[:count]
            for difference in differences(outputs, candidate.history)
            for band in features(difference, candidate.bands, self.grid)
        ]
        self._equations.add(target[:count], slope[:count], parts, self.channel_axis)

    def solve(self) -> None:
        """The numbers of the current step, to which all batches have come."""
        assert self._equations is not None
        theta, candidate = self._equations.solve(), self.candidate
        count = candidate.history * candidate.bands
        self.coefficients.append(theta[:count].view(candidate.history, candidate.bands))
        self.constants.append(theta[count:])
        self._equations = None

    def term(self, step: int, outputs: list[torch.Tensor]) -> torch.Tensor | None:
        """What a step adds to the newest output."""
        constant = self.constants[step] if self.candidate.bias else None
        return correction_term(outputs, self.coefficients[step], constant, self.channel_axis, self.grid)

    def finish(self, batch: int, state: torch.Tensor) -> None:
        """Note the final state of a batch."""
        self.errors[batch] = relative_errors(state, self.reference.state(batch, len(self.coefficients)))

    def error(self) -> tuple[float, float]:
        """The error of the final state over held-out trajectories: its mean, and the standard error of that."""
        return mean_error(self.errors, self.held_out)

    def fitted(self) -> StepCoefficients:
        """The numbers of all steps."""
        assert self.sampler is not None
        return StepCoefficients(
            self.sampler.timesteps,
            torch.stack(self.coefficients),
            torch.stack(self.constants) if self.candidate.bias else None,
            self.channel_axis,
            self.grid if self.candidate.bands > 1 else None,
            None if all(self.full_steps) else tuple(self.full_steps),
        )


class FitParticipant(Participant):
    """One batch's part in an output fit."""

    def __init__(self, fit: OutputFit, batch: int, first: int) -> None:
        self.fit, self.batch, self.first = fit, batch, first

    def join(self, run: Run) -> "_FittedRun":
        return _FittedRun(self, run)


class _FittedRun(Part):
    def __init__(self, participant: FitParticipant, run: Run) -> None:
        self.fit, self.by, self.run = participant.fit, participant, run
        self.history: OutputHistory | None = None
        self.caches = CacheStates(run.pipe, run.clock)
        self.caches.restore(participant.fit.fresh_caches)
        self.last: torch.Tensor | None = None

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None and self.last is not None:
            self.fit.finish(self.by.batch, self.last)

    def step(self, commit: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step, fit, scheduler = self.run.clock.step, self.fit, self.run.scheduler
        if self.history is None:
            fit.sampler = Sampler.as_set(scheduler)
            self.history = OutputHistory(fit.sampler.timesteps, max(1, fit.candidate.history))
        step_map = StepMap(scheduler, commit, args, kwargs)
        timestep = step_map.timestep
        variable = straight(scheduler, timestep)
        output = step_map.output.to(step_map.dtype, copy=True)
        outputs = self.history.add(float(timestep_number(timestep) or 0), variable.of(output, step_map.sample).clone())
        plain = step_map.dry(output)
        slope = step_map.dry(output + 1) - plain
        if variable.scale:
            slope = slope / variable.scale
        target = fit.reference.state(self.by.batch, step + 1).to(plain.device) - plain
        require_same_start(fit.reference, self.by.batch, step, step_map.sample)
        fit.add(target, slope, outputs, self.by.first)
        if self.by.batch == 0:
            fit.full_steps.append(self.run.clock.full is not False)
        self.caches.wait_for_all()
        term = fit.term(step, outputs)
        if term is not None and variable.scale:
            output = output + term / variable.scale
        stepped = step_map.commit(output.to(step_map.output.dtype))
        self.last = previous_sample(stepped)
        return stepped


class CacheStates:
    """The states of third-party caches, which live in the networks that all batches share: each batch keeps its own.

    Raises ValueError for a cache whose state is not known.
    """

    def __init__(self, pipe: Any, clock: Clock) -> None:
        self.adapters: list[CacheAdapter] = []
        for network in denoisers(pipe).values():
            try:
                self.adapters += cache_adapters(network, clock)
            except IECUnsupportedError as error:
                raise ValueError(f"{error} A correction cannot be fitted beside it.") from error

    def snapshot(self) -> list[Any]:
        """The states as they are now."""
        return [adapter.snapshot() for adapter in self.adapters]

    def restore(self, states: list[Any]) -> None:
        """Put states back."""
        for adapter, state in zip(self.adapters, states, strict=True):
            adapter.restore(state)

    def wait_for_all(self) -> None:
        """Wait for the other batches, and go on with the states of now."""
        states = self.snapshot()
        wait_for_all()
        self.restore(states)


def relative_errors(state: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The norm of the error beside that of what is expected, float64 [B]. Raises ValueError for another shape."""
    if state.shape != expected.shape:
        raise ValueError(
            f"The reference has latents of shape {list(expected.shape[1:])}, but this pipeline of "
            f"{list(state.shape[1:])}: give the full-precision pipeline of the same model and size."
        )
    state, expected = state.detach().double().cpu().flatten(1), expected.double().flatten(1)
    errors: torch.Tensor = (state - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)
    return errors


def mean_error(errors: dict[int, torch.Tensor], held_out: int) -> tuple[float, float]:
    """The geometric mean over the trajectories from `held_out` on, and its standard error, from batches in order.

    Geometric, as a mean PSNR is: a few trajectories that end in another image would outweigh all others.
    """
    logs = torch.cat([errors[batch] for batch in sorted(errors)])[held_out:].clamp_min(1e-12).log()
    mean = logs.mean().exp().item()
    return mean, mean * logs.std().item() / len(logs) ** 0.5 if len(logs) > 1 else 0.0


def require_same_start(reference: ReferenceStates, batch: int, step: int, sample: torch.Tensor) -> None:
    """Raise ValueError unless the first state is the reference's."""
    if step:
        return
    if relative_errors(sample, reference.state(batch, 0)).max() > 0.02:
        raise ValueError(
            "The reference starts from other noise than this pipeline: give a pipeline of the same kind, dtype and "
            "scheduler."
        )
