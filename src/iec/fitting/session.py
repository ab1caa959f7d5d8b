"""The runs of one calibration: of every candidate in lockstep, and of what its errors are held against."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.efficient.lockstep import run_together
from iec.fitting.deployed_calls import Batches
from iec.fitting.fit import CacheStates, Candidate, FitParticipant, OutputFit, mean_error
from iec.fitting.latents import Latents
from iec.fitting.reference import ReferenceStates
from iec.fitting.relaxation_fit import FinalState, FittedCorrector, RelaxationFit, final_errors
from iec.method.clock import Clock
from iec.pipelines.correction_plan import CorrectionPlan
from iec.pipelines.output_correction import OutputCorrection
from iec.runtime import Participant

#: Told how many evaluations of one image are done, and how many there are.
Progress = Callable[[int, int], None]


class Session:
    """What all runs of a calibration share. held_out: the first trajectory to which nothing is fitted."""

    def __init__(
        self,
        num_steps: int,
        inputs: Mapping[str, Any],
        batches: Batches,
        states: ReferenceStates,
        held_out: int,
        on_progress: Progress = lambda done, total: None,
    ) -> None:
        self.num_steps, self.inputs, self.batches, self.states = num_steps, inputs, batches, states
        self.held_out = held_out
        self.latents = Latents(1, None, False)
        self.total, self.done, self._on_progress = 0, 0, on_progress

    def advance(self, evaluations: int) -> None:
        """Count evaluations of one image as done."""
        self.done += evaluations
        self.total = max(self.total, self.done)
        self._on_progress(self.done, self.total)

    def fit_outputs(self, pipe: DiffusionPipeline, candidate: Candidate) -> OutputFit:
        """Fit one candidate."""
        fresh = self._fresh_caches(pipe)
        fit = OutputFit(candidate, self.states, self.held_out, self.latents.channel_axis, self.latents.grid, fresh)
        self._in_lockstep(pipe, fit.solve, lambda *place: [FitParticipant(fit, *place)])
        return fit

    def fit_relaxation(self, pipe: DiffusionPipeline) -> RelaxationFit:
        """Fit IEC's lambdas.

        Raises ValueError where batches would share the state of a third-party cache, which IEC's passes read.
        """
        if self._fresh_caches(pipe) and len(self.batches.parts) > 1:
            raise ValueError(
                "Beside another library's cache, IEC's relaxation is fitted in one batch: give batch_size as large as "
                "samples."
            )
        fit = RelaxationFit(self.states, self.held_out)

        def standing(batch: int, first: int) -> list[Participant]:
            return [FittedCorrector(fit, batch, first), FinalState(batch, fit.finish)]

        self._in_lockstep(pipe, fit.solve, standing)
        return fit

    def plain_error(self, pipe: DiffusionPipeline) -> float:
        """The error of uncorrected runs over the held-out trajectories."""
        errors: dict[int, torch.Tensor] = {}
        finish = final_errors(self.states, errors)
        skipped = 0
        for number, part in enumerate(self.batches.parts):
            if part.stop <= self.held_out:
                skipped += len(part)
                continue
            self._call(pipe, part, FinalState(number, finish))
            self.advance(len(part) * self.num_steps)
        return mean_error(errors, self.held_out - skipped)[0]

    def full_steps(self, pipe: DiffusionPipeline, plan: CorrectionPlan) -> tuple[bool, ...] | None:
        """Which steps of a corrected run another library's cache computes in full; None where there is none."""
        if not self._fresh_caches(pipe):
            return None
        correction = OutputCorrection(plan)
        self._call(pipe, self.batches.parts[-1], correction)
        assert correction.latest is not None
        return tuple(record.cached == 0 for record in correction.latest.steps)

    def _fresh_caches(self, pipe: DiffusionPipeline) -> list[Any]:
        return CacheStates(pipe, Clock(self.num_steps)).snapshot()

    def _call(self, pipe: DiffusionPipeline, part: range, *by: Participant) -> None:
        self.batches.call(pipe, copy.deepcopy(pipe.scheduler), self.num_steps, self.inputs, part, *by)

    def _in_lockstep(
        self,
        pipe: DiffusionPipeline,
        solve: Callable[[], None],
        standing: Callable[[int, int], Sequence[Participant]],
    ) -> None:
        """Run all batches; `standing(batch, first trajectory)` makes what stands around a batch's steps."""

        def call(number: int, part: range) -> Callable[[], None]:
            return lambda: self._call(pipe, part, *standing(number, part.start))

        def on_round() -> None:
            solve()
            self.advance(self.batches.samples)

        run_together([call(number, part) for number, part in enumerate(self.batches.parts)], on_round)
