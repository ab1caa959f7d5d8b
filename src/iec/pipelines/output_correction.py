"""Output correction as a participant of a pipeline's runs: only what `scheduler.step` is given changes."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from iec.method.cache import Cache, RunCache, was_full
from iec.method.output_corrector import OutputCorrector, OutputRun
from iec.method.summary import StepRecord, Summary, step_count_warning
from iec.pipelines.caches import bound_to, caches_of
from iec.pipelines.correction_plan import CorrectionPlan
from iec.pipelines.deployment import call_arguments, denoisers
from iec.pipelines.errors import IECUnsupportedError, took_no_step
from iec.pipelines.step_map import previous_sample, timestep_number
from iec.pipelines.step_trial import step_kind
from iec.pipelines.straight import straight
from iec.runtime import Part, Participant, Run

_FIRST_ORDER = "use a first-order one: DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler"


def require_correctable(scheduler: Any, arguments: Mapping[str, Any], planned: bool) -> None:
    """Raise IECUnsupportedError unless outputs may be corrected before the steps of a scheduler with set timesteps.

    arguments: of the pipeline's call. planned: whether a plan corrects, and not Adams' rule.
    """
    kind, name = step_kind(scheduler, arguments), type(scheduler).__name__
    if kind.stochastic:
        raise IECUnsupportedError(
            f"{name} draws noise at its steps, and outputs are corrected towards a deterministic trajectory: "
            f"{_FIRST_ORDER}, with eta 0."
        )
    if kind.multistep and not planned:
        raise IECUnsupportedError(f"{name} extrapolates earlier outputs already: {_FIRST_ORDER}, or a plan.")


class OutputCorrection(Participant):
    """Corrects the outputs of one pipeline's runs; `latest` is the summary of its latest run."""

    def __init__(self, corrector: OutputCorrector, pipe: Any = None) -> None:
        self.corrector = corrector
        # The networks that the plan was found to fit; others are looked at again.
        self.networks = {} if pipe is None else denoisers(pipe)
        self.latest: Summary | None = None

    def join(self, run: Run) -> "OutputCorrectedRun":
        return OutputCorrectedRun(self, run)


class OutputCorrectedRun(Part):
    """One run. Nothing is evaluated again, so nothing is recorded: it runs wherever the scheduler's step is called."""

    def __init__(self, correction: OutputCorrection, run: Run) -> None:
        self.correction, self.corrector, self.run = correction, correction.corrector, run
        self.plan = self.corrector if isinstance(self.corrector, CorrectionPlan) else None
        self.summary = Summary(0, 0)
        self.caches: list[Cache] = [RunCache(run.clock)]
        self.steps: OutputRun | None = None
        self.other_size: str | None = None
        self._stack = ExitStack()
        self.started = time.perf_counter()

    def __enter__(self) -> "OutputCorrectedRun":
        if self.plan is not None:
            known = self.correction.networks
            if known and any(known.get(name) is not own for name, own in denoisers(self.run.pipe).items()):
                self.plan.require_fits(self.run.pipe)
            self.plan.require_technique(self.run.pipe)
        networks = {id(c): c for c in self.run.pipe.components.values() if isinstance(c, torch.nn.Module)}
        with ExitStack() as stack:
            for network in networks.values():
                try:
                    caches = stack.enter_context(caches_of(network, self.run.clock))
                except IECUnsupportedError:
                    continue  # nothing is evaluated again, so a cache that is not known does no harm
                if caches:
                    self.caches.extend(caches)
                    stack.enter_context(self.run.intercept(network, bound_to(caches)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
        if self.summary.steps:
            self.summary.warnings += self._warnings(completed=exception[0] is None)
            self.correction.latest = self.summary
        elif exception[0] is None:
            raise took_no_step(self.run.pipe)

    def _warnings(self, completed: bool) -> Iterator[str]:
        yield from step_count_warning(self.summary, completed)
        if self.plan is None:
            return
        guidance = self.plan.other_guidance(call_arguments(self.run.pipe, self.run.arguments))
        if guidance is not None:
            yield guidance
        if self.other_size is not None:
            yield self.other_size
        fallen = len(self.summary.by_rule("adams"))
        if fallen:
            yield (
                f"At {fallen} steps the cache decided otherwise than while the plan was calibrated; Adams' rule "
                "corrected them."
            )

    def timesteps_set(self) -> None:
        """A run over new timesteps begins, with an empty history."""
        self.steps = None
        self._begin()

    def _begin(self) -> None:
        scheduler = self.run.scheduler
        require_correctable(scheduler, self.run.arguments, planned=self.plan is not None)
        if self.plan is not None:
            self.plan.require_timesteps(scheduler)
        self.steps = self.corrector.begin(torch.as_tensor(scheduler.timesteps).double().tolist())
        self.summary.num_steps = self.run.clock.num_steps

    def steps_known(self) -> None:
        self.summary.num_steps = self.run.clock.num_steps

    def step(self, commit: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.steps is None:  # the timesteps were set before the call
            self._begin()
        scheduler = self.run.scheduler
        call = inspect.signature(scheduler.step).bind(*args, **kwargs)
        arguments = call.arguments
        timestep = arguments.get("timestep")
        record = StepRecord(self.run.clock.step, timestep_number(timestep), False)
        record.count(was_full(self.caches))
        # A step that is given its prediction makes the end of one whose output was corrected before.
        if arguments.get("pred_original_sample") is None:
            output, sample = arguments.get("model_output"), arguments.get("sample")
            if output is None or sample is None or record.timestep is None or output.shape != sample.shape:
                raise IECUnsupportedError(
                    f"{type(scheduler).__name__}.step is not given one model output of the shape of its sample, so it "
                    "cannot be corrected: disable correction for this pipeline (iec.disable)."
                )
            if self.plan is not None and not self.summary.steps:
                self.other_size = self.plan.require_latent(sample.shape[1:])
            arguments["model_output"] = self._corrected(output, sample, timestep, record)
        stepped = commit(*call.args, **call.kwargs)
        record.seconds = time.perf_counter() - self.started
        self.summary.num_images = len(previous_sample(stepped))
        self.summary.steps.append(record)
        self.started = time.perf_counter()
        return stepped

    def _corrected(self, output: torch.Tensor, sample: torch.Tensor, timestep: Any, record: StepRecord) -> torch.Tensor:
        assert self.steps is not None
        assert record.timestep is not None
        dtype = torch.promote_types(output.dtype, torch.float32)
        variable = straight(self.run.scheduler, timestep)
        # A copy: networks may own the buffer of their output.
        h = variable.of(output.to(dtype), sample.to(dtype))
        if h.dtype == output.dtype and h.data_ptr() == output.data_ptr():
            h = h.clone()
        change = self.steps.before_step(float(record.timestep), h, record.cached == 0)
        if change.term is None:
            record.rule = change.rule
            return output
        if variable.scale == 0:  # what the network says of pure noise does not reach the step
            return output
        return record.add_change(change, output.to(dtype), 1 / variable.scale).to(output.dtype)
