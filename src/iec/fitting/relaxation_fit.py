"""IEC's own lambda of every step by the same least squares: how far along its residual the reference lies.

Where the residual explains next to nothing of the error, the step is left uncorrected and costs nothing.
"""

from collections.abc import Callable
from typing import Any

import torch

from iec.efficient.lockstep import wait_for_all
from iec.fitting.fit import mean_error, relative_errors
from iec.fitting.least_squares import NormalEquations
from iec.fitting.reference import ReferenceStates
from iec.method.config import IECConfig
from iec.pipelines.corrector import Corrector
from iec.pipelines.step_map import previous_sample
from iec.runtime import Part, Participant, Run, Sampler

#: A step whose residual explains less of the squared error is not worth an evaluation.
_WORTH = 0.01


class RelaxationFit:
    """The lambdas as they are found, step by step, and the errors of the final states; held_out: as of `OutputFit`."""

    def __init__(self, reference: ReferenceStates, held_out: int) -> None:
        self.reference, self.held_out = reference, held_out
        self.sampler: Sampler | None = None
        self.relaxations: dict[int, float] = {}
        self.errors: dict[int, torch.Tensor] = {}
        self._step = 0
        self._begin_step()

    def add(self, step: int, target: torch.Tensor, residual: torch.Tensor, first: int) -> None:
        """Count a batch, whose first trajectory is `first`: what x^(0) lacks, and IEC's residual [B, ...]."""
        self._step = step
        count = max(0, min(len(target), self.held_out - first))
        if count:
            self._equations.add(target[:count], torch.ones_like(target[:count]), [residual[:count]])
            self._squares += target[:count].double().square().sum().item()

    def solve(self) -> None:
        """Lambda of the current step."""
        relaxation = self._equations.solve().item()
        explained = relaxation * self._equations.right.item()
        self.relaxations[self._step] = relaxation if explained > _WORTH * self._squares else 0.0
        self._begin_step()

    def all_relaxations(self) -> tuple[float, ...]:
        """Lambda of every step; 0 where a cache served it."""
        assert self.sampler is not None
        return tuple(self.relaxations.get(step, 0.0) for step in range(len(self.sampler.timesteps)))

    def finish(self, batch: int, state: torch.Tensor, sampler: Sampler) -> None:
        """Note the final state of a batch."""
        self.sampler = sampler
        final_errors(self.reference, self.errors)(batch, state, sampler)

    def error(self) -> tuple[float, float]:
        """The error of the final state over held-out trajectories, and its standard error."""
        return mean_error(self.errors, self.held_out)

    def _begin_step(self) -> None:
        self._equations, self._squares = NormalEquations(1), 0.0


class FittedCorrector(Corrector):
    """IEC on one batch, which waits at every step for the lambda that fits all batches."""

    def __init__(self, fit: RelaxationFit, batch: int, first: int) -> None:
        super().__init__(IECConfig(tolerance=0.0))
        self.fit, self.batch, self.first = fit, batch, first

    def relax(self, step: int) -> Callable[[torch.Tensor, torch.Tensor], float]:
        def fitted(state: torch.Tensor, residual: torch.Tensor) -> float:
            expected = self.fit.reference.state(self.batch, step + 1).to(state.device)
            self.fit.add(step, expected - state, residual, self.first)
            wait_for_all()
            return self.fit.relaxations[step]

        return fitted


class FinalState(Participant):
    """Tells `finish(batch, state)` the state in which a run of that batch ends."""

    def __init__(self, batch: int, finish: Callable[[int, torch.Tensor, Sampler], None]) -> None:
        self.batch, self.finish = batch, finish

    def join(self, run: Run) -> "_LastStep":
        return _LastStep(self, run)


class _LastStep(Part):
    def __init__(self, participant: FinalState, run: Run) -> None:
        self.by, self.run = participant, run
        self.last: torch.Tensor | None = None

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None and self.last is not None:
            self.by.finish(self.by.batch, self.last, Sampler.as_set(self.run.scheduler))

    def step(self, commit: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stepped = commit(*args, **kwargs)
        self.last = previous_sample(stepped)
        return stepped


def final_errors(reference: ReferenceStates, errors: dict[int, torch.Tensor]) -> Callable[..., None]:
    """What `FinalState` tells: the errors of every batch."""

    def finish(batch: int, state: torch.Tensor, sampler: Sampler) -> None:
        errors[batch] = relative_errors(state, reference.state(batch, len(sampler.timesteps)))

    return finish
