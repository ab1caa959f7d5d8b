"""Correction as a participant of a pipeline's runs: what happens around each `scheduler.step` call."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from iec.method.cache import Cache, RunCache, StepCaches, was_full
from iec.method.config import IECConfig
from iec.method.correction import choose, correct
from iec.method.errors import require_finite
from iec.method.steps import select_steps
from iec.method.summary import StepRecord, Summary, step_count_warning
from iec.pipelines.caches import CacheAdapter, bound_to, caches_of
from iec.pipelines.correction_plan import CorrectionPlan
from iec.pipelines.errors import took_no_step
from iec.pipelines.guided_output import GuidedOutput
from iec.pipelines.guiders import GuiderHooks, has_guider
from iec.pipelines.recording import Event, Recorder
from iec.pipelines.resolution import is_rounded_away
from iec.pipelines.step_map import StepMap, previous_sample, timestep_number, with_previous_sample
from iec.runtime import Part, Participant, Run, timestep_of


class Corrector(Participant):
    """Corrects the runs of one pipeline; `latest` is the summary of its latest run.

    plan: where the lambda of each step was fitted.
    """

    def __init__(self, config: IECConfig, plan: CorrectionPlan | None = None) -> None:
        self.config, self.plan = config, plan
        self.latest: Summary | None = None

    def relax(self, step: int) -> Callable[[torch.Tensor, torch.Tensor], float] | None:
        """What gives lambda at a step from x^(k) and its residual; None: the settings do."""
        if self.plan is None or self.plan.relaxations is None:
            return None
        relaxation = self.plan.relaxations[step]
        return lambda state, residual: relaxation

    def join(self, run: Run) -> "CorrectedRun":
        return CorrectedRun(self, run)


class CorrectedRun(Part):
    """One run: the glue and network calls of every selected step are recorded, and replayed to correct the step."""

    def __init__(self, corrector: Corrector, run: Run) -> None:
        self.corrector, self.config, self.run = corrector, corrector.config, run
        self.caches: list[Cache] = [RunCache(run.clock)]
        self.recorder = Recorder()
        self.selected: frozenset[int] = frozenset()
        self.summary = Summary(0, 0)
        self.rounded_away: list[int] = []
        self._stack = ExitStack()
        self.begin, self._begun = 0, False

    def __enter__(self) -> "CorrectedRun":
        if self.corrector.plan is not None:
            self.corrector.plan.require_technique(self.run.pipe)
        components = self.run.pipe.components.values()
        networks = {id(c): c for c in components if isinstance(c, torch.nn.Module)}
        guided = has_guider(components)
        with ExitStack() as stack:
            stack.callback(self.recorder.stop)
            for network in networks.values():
                caches = stack.enter_context(caches_of(network, self.run.clock))
                self.caches.extend(caches)
                surroundings: list[CacheAdapter | GuiderHooks] = list(caches)
                if guided:
                    surroundings.append(GuiderHooks(network))
                stack.enter_context(self.run.intercept(network, bound_to(surroundings, self.recorder.evaluate)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
        if self.summary.steps:
            self.summary.warnings += self._warnings(completed=exception[0] is None)
            self.corrector.latest = self.summary
        elif exception[0] is None and self.config.num_iterations:
            raise took_no_step(self.run.pipe)

    def _warnings(self, completed: bool) -> Iterator[str]:
        yield from step_count_warning(self.summary, completed)
        if self.rounded_away:
            count, corrected = len(self.rounded_away), len(self.summary.corrected)
            yield (
                f"At {count} of {corrected} corrected steps (the first is step {self.rounded_away[0]}) the correction "
                "was below the resolution of the latents' dtype and was rounded away: keep the latents in float32, or "
                "correct only the other steps."
            )

    def timesteps_set(self) -> None:
        if self.corrector.plan is not None:
            self.corrector.plan.require_timesteps(self.run.scheduler)

    def steps_known(self) -> None:
        self.timesteps_set()
        clock, plan = self.run.clock, self.corrector.plan
        # A run may begin inside the timesteps of a plan, whose numbers are those of the whole grid.
        self.begin = 0 if plan is None else plan.num_steps - clock.num_steps
        steps = select_steps(self.config.steps, clock.num_steps + self.begin) if self.config.num_iterations else ()
        self.selected = frozenset(step - self.begin for step in steps if step >= self.begin)
        self.summary.num_steps = clock.num_steps
        if not self._begun:
            self._begun = True
            # A pipeline that begins inside its timesteps shows their number only when it takes its first step.
            self._begin_step(may_correct=self.config.num_iterations > 0)

    def step(self, commit: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        i = self.run.clock.step
        events = self.recorder.stop()
        record = StepRecord(i, timestep_number(timestep_of(self.run.scheduler, args, kwargs)), i in self.selected)
        full = was_full(self.caches)
        record.count(full)
        if record.selected and (full or self.config.cached_steps):
            self.step_caches.main_done()
            stepped = self._correct(events, StepMap(self.run.scheduler, commit, args, kwargs), record)
        else:
            stepped = commit(*args, **kwargs)
        previous = require_finite(previous_sample(stepped), i, record.timestep)
        record.seconds = time.perf_counter() - self.started
        self.summary.num_images = len(previous)
        self.summary.steps.append(record)
        self._begin_step(may_correct=i + 1 in self.selected)
        return stepped

    def _begin_step(self, may_correct: bool) -> None:
        self.started = time.perf_counter()
        self.step_caches = StepCaches(self.caches if may_correct else [], self.config.cache)
        if may_correct:
            self.recorder.start()
        else:
            self.recorder.stop()

    def _correct(self, events: list[Event], step_map: StepMap, record: StepRecord) -> Any:
        # The network may own the buffer of its output and overwrite it when it is evaluated again.
        output = step_map.output.to(step_map.dtype, copy=True)
        require_finite(output, record.step, record.timestep)
        guided_output = GuidedOutput(events, step_map.sample, step_map.output)

        def predict(x: torch.Tensor) -> torch.Tensor:
            return guided_output(x.to(step_map.sample.dtype)).to(step_map.dtype)

        # Not held by a name here: `correct` lets go of x^(0) as soon as it can.
        result = correct(
            require_finite(step_map.dry(output), record.step, record.timestep),
            self.step_caches.counted(predict, self.run.clock, record),
            step_map.dry,
            self.config,
            output,
            self.step_caches.settle,
            self.corrector.relax(record.step + self.begin),
        )
        record.corrected, record.residuals, record.fell_back = True, result.residuals, result.fell_back
        assert result.output is not None
        stepped = step_map.commit(result.output.to(step_map.output.dtype))
        previous = previous_sample(stepped)
        if is_rounded_away(result, previous.dtype, self.config):
            self.rounded_away.append(record.step)
        return with_previous_sample(stepped, choose(result.changed, result.state.to(previous.dtype), previous))
