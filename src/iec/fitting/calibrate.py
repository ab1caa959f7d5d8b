"""`calibrate_correction`: from a pipeline to the plan of its correction."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from diffusers import DiffusionPipeline

from iec import __version__
from iec.efficient.checkpoint import Checkpoint
from iec.efficient.identity import described
from iec.efficient.trajectories import TrajectoryCalls
from iec.fitting.choosing import best_fit
from iec.fitting.deployed_calls import Batches, without_technique
from iec.fitting.fine_scheduler import require_fittable
from iec.fitting.latents import latents_of
from iec.fitting.noise_levels import noise_levels
from iec.fitting.reference import ReferenceStates, make_reference
from iec.fitting.session import Progress, Session
from iec.method.noise import MAX_SEED
from iec.pipelines.correction_plan import CorrectionPlan, FitReport
from iec.pipelines.deployment import (
    call_arguments,
    denoisers,
    different_setting,
    guidance_of,
    model_identity,
    scheduler_settings,
    technique_of,
)
from iec.pipelines.scheduler_state import copied_scheduler
from iec.runtime import Sampler, require_pipeline

#: The reference takes about so many steps, and at least two in each of the deployed ones.
_FINE_STEPS = 60
_FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class FitConfig:
    """What to fit, and from what; the arguments of `calibrate_correction` that are no pipelines.

    Raises ValueError or TypeError, in one sentence, for what cannot be fitted.
    """

    num_inference_steps: int
    samples: int = 64
    seed: int = 0
    history: int | None = None
    bias: bool | None = None
    bands: int | None = None
    relaxation: Literal["fitted"] | None = None
    substeps: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        integers = {"num_inference_steps": 1, "samples": _FEWEST_SAMPLES, "batch_size": 1}
        integers |= {"substeps": 1, "history": 0, "seed": 0}
        for name, least in integers.items():
            value = getattr(self, name)
            if value is None and name in ("substeps", "history"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, but is {value!r}.")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}.")
        if self.seed > MAX_SEED:
            raise ValueError(f"seed must lie in 0..{MAX_SEED}, but is {self.seed}.")
        if self.bias is not None and not isinstance(self.bias, bool):
            raise TypeError(f"bias must be True, False or None, but is {self.bias!r}.")
        if self.bands not in (None, 1, 3):
            raise ValueError(f"bands must be 1, 3 or None, but is {self.bands!r}.")
        if self.relaxation not in (None, "fitted"):
            raise ValueError(f"relaxation must be 'fitted' or None, but is {self.relaxation!r}.")
        if self.relaxation and (self.history, self.bias, self.bands) != (None, None, None):
            raise ValueError("IEC's relaxation is fitted by itself: leave out history, bias and bands.")

    @property
    def fine_steps(self) -> int:
        """The reference's steps in one of the deployed run, at most."""
        return self.substeps or max(2, -(-_FINE_STEPS // self.num_inference_steps))

    @property
    def fixed(self) -> dict[str, int]:
        """What is given of the choices that held-out trajectories make otherwise."""
        return {name: value for name in ("history", "bias", "bands") if (value := getattr(self, name)) is not None}

    @property
    def held_out(self) -> int:
        """From this trajectory on, a quarter is not fitted, and chooses among what was."""
        return self.samples - max(2, self.samples // 4)


def calibrate_correction(
    pipe: DiffusionPipeline,
    num_inference_steps: int = 10,
    samples: int = 64,
    seed: int = 0,
    reference: DiffusionPipeline | Literal["self"] | None = None,
    history: int | None = None,
    bias: bool | None = None,
    inputs: Mapping[str, Any] | None = None,
    *,
    bands: int | None = None,
    relaxation: Literal["fitted"] | None = None,
    substeps: int | None = None,
    batch_size: int = 16,
    on_progress: Progress = lambda done, total: None,
    checkpoint: str | Path | None = None,
) -> CorrectionPlan:
    """The plan that corrects runs of `pipe`, as it is now, over `num_inference_steps` steps.

    samples, seed: trajectories, from the noise of seed + 2000; a quarter of them is held out. reference: the
    full-precision pipeline; None: this one without what makes it efficient; "self": this one as it is, so that only
    the solver's error is corrected. history, bias, bands: m, a constant per channel, frequency bands (1 or 3); None:
    chosen on the held-out trajectories. relaxation: "fitted" fits IEC's lambda of each step instead. inputs: further
    arguments of the call; of a list, each trajectory takes one entry in turn. substeps: steps of the reference in each
    of the deployed ones; 1 is the deployed grid itself. on_progress(done, total): in trajectories over all runs.
    checkpoint: a folder of its own, from which an interrupted call goes on to the same plan; deleted when it is done.

    Raises ValueError or TypeError, in one sentence and before anything is sampled, for settings, a scheduler, a
    reference or a checkpoint that does not fit.
    """
    config = FitConfig(num_inference_steps, samples, seed, history, bias, bands, relaxation, substeps, batch_size)
    if not isinstance(inputs, (Mapping, type(None))):
        raise TypeError(f"inputs must be a mapping from arguments of the call, or None, but is {inputs!r}.")
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        raise TypeError(f"checkpoint must be a folder, but is {checkpoint!r}.")
    if not callable(on_progress):
        raise TypeError(f"on_progress must be callable as on_progress(done, total), but is {on_progress!r}.")
    given = dict(inputs or {})
    require_fit(pipe, config, reference, given)
    batches = Batches(samples, batch_size, seed)
    kept = None if checkpoint is None else Checkpoint(checkpoint, _identity(pipe, reference, config, given))
    with ExitStack() as stack:
        unkept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = unkept if kept is None else kept.folder("reference")
        folder.mkdir(parents=True, exist_ok=True)
        plan = _Calibration(pipe, reference, config, given, batches, ReferenceStates(folder), on_progress).plan()
    if kept is not None:
        kept.finish()
    return plan


def require_fit(
    pipe: DiffusionPipeline,
    config: FitConfig,
    reference: DiffusionPipeline | Literal["self"] | None = None,
    inputs: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Raise ValueError or TypeError, in one sentence, for what `calibrate_correction` refuses before any work."""
    require_pipeline(pipe)
    Batches(config.samples, config.batch_size, config.seed)  # refuses a seed outside its range
    if isinstance(reference, DiffusionPipeline):
        require_pipeline(reference)
        _require_alike(pipe, reference)
    elif reference not in (None, "self"):
        raise TypeError(f"reference must be a pipeline, None or 'self', but is {reference!r}.")
    TrajectoryCalls(pipe, config.num_inference_steps, dict(inputs))  # refuses inputs that the pipeline does not take
    _require_scheduler(pipe, config.num_inference_steps)


class _Calibration:
    """One calibration, whose settings are checked."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        reference: DiffusionPipeline | Literal["self"] | None,
        config: FitConfig,
        inputs: dict[str, Any],
        batches: Batches,
        states: ReferenceStates,
        on_progress: Progress,
    ) -> None:
        self.pipe, self.reference, self.config, self.inputs = pipe, reference, config, inputs
        self.technique, self.model = technique_of(pipe), model_identity(pipe)
        # Whether there is anything but the solver's error to correct.
        self.efficient = reference != "self" and (self.technique != "none" or reference is not None)
        self.session = Session(config.num_inference_steps, inputs, batches, states, config.held_out, on_progress)
        self.session.total = self._evaluations()

    def plan(self) -> CorrectionPlan:
        """Run it."""
        session, config = self.session, self.config
        with self._source() as source:
            make_reference(
                source,
                config.num_inference_steps,
                config.fine_steps,
                session.batches,
                self.inputs,
                session.states,
                lambda trajectories: session.advance(trajectories * config.num_inference_steps * config.fine_steps),
            )
        shape = tuple(session.states.state(0, 0).shape)
        session.latents = latents_of(self.pipe, shape, call_arguments(self.pipe, self.inputs))
        plain = session.plain_error(self.pipe)
        if config.relaxation is not None:
            lambdas = session.fit_relaxation(self.pipe)
            assert lambdas.sampler is not None
            plan = self._plan(lambdas.sampler, shape, self._report(plain, lambdas.error()[0]))
            plan = replace(plan, relaxations=lambdas.all_relaxations())
        else:
            best, tried = best_fit(session, self.pipe, config.history, config.bands, config.bias, self.efficient)
            assert best.sampler is not None
            report = replace(self._report(plain, best.error()[0]), tried=tried)
            if self.efficient:
                with self._source() as source:
                    solver = session.fit_outputs(source, replace(best.candidate, bias=False))
                    report = replace(
                        report, solver_plain=session.plain_error(source), solver_corrected=solver.error()[0]
                    )
            plan = replace(self._plan(best.sampler, shape, report), fitted=best.fitted())
            full_steps = session.full_steps(self.pipe, plan)
            if full_steps is not None:
                plan = replace(plan, fitted=replace(best.fitted(), full_steps=full_steps))
        session.advance(session.total - session.done)
        return plan

    @contextmanager
    def _source(self) -> Iterator[DiffusionPipeline]:
        """The pipeline of the reference, as it has to be."""
        if isinstance(self.reference, DiffusionPipeline):
            yield self.reference
        elif self.reference == "self":
            yield self.pipe
        else:
            with without_technique(self.pipe):
                yield self.pipe

    def _plan(self, sampler: Sampler, shape: tuple[int, ...], report: FitReport) -> CorrectionPlan:
        guidance = guidance_of(call_arguments(self.pipe, self.inputs))
        settings = scheduler_settings(self.pipe.scheduler)
        return CorrectionPlan(
            sampler, self.model, self.technique, shape[1:], report, guidance=guidance, scheduler=settings
        )

    def _report(self, plain: float, corrected: float) -> FitReport:
        config, reference = self.config, self.reference
        name = "given" if isinstance(reference, DiffusionPipeline) else reference or "full precision"
        return FitReport(config.samples, config.seed, config.fine_steps, name, plain, corrected, fixed=config.fixed)

    def _evaluations(self) -> int:
        """About how many evaluations of one image it takes; candidates that need not be tried are counted."""
        config = self.config
        fits = 2 if config.relaxation else 1 + (config.history is None) + (config.bands is None) + (config.bias is None)
        fits += self.efficient and not config.relaxation
        held_out = (config.samples - config.held_out) * (1 + (self.efficient and not config.relaxation))
        return config.num_inference_steps * (config.samples * (config.fine_steps + fits) + held_out)


def _require_scheduler(pipe: DiffusionPipeline, num_steps: int) -> None:
    """Raise ValueError for a scheduler that no correction can be fitted to, where its grid needs nothing else."""
    own = copied_scheduler(pipe.scheduler)
    try:
        own.set_timesteps(num_steps)
    except (TypeError, ValueError):
        return  # it needs more than the number of steps, as dynamic shifting does: the run will ask
    require_fittable(own)
    noise_levels(own)


def _require_alike(pipe: DiffusionPipeline, reference: DiffusionPipeline) -> None:
    """Raise ValueError where a reference cannot have the same latents."""
    for name, network in denoisers(pipe).items():
        other = denoisers(reference).get(name)
        for setting in ("in_channels", "sample_size", "out_channels"):
            ours = getattr(network, "config", {}).get(setting)
            theirs = None if other is None else getattr(other, "config", {}).get(setting)
            if ours != theirs:
                raise ValueError(
                    f"The reference's {name} has {setting} {theirs}, but this pipeline's {ours}: give the "
                    "full-precision pipeline of the same model."
                )
    if type(pipe.scheduler) is not type(reference.scheduler):
        raise ValueError(
            f"The reference has a {type(reference.scheduler).__name__}, but this pipeline a "
            f"{type(pipe.scheduler).__name__}: give it the same scheduler."
        )
    changed = different_setting(scheduler_settings(pipe.scheduler), scheduler_settings(reference.scheduler))
    if changed is not None:
        raise ValueError(f"The reference's scheduler has {changed}: give it the same scheduler.")


def _identity(pipe: Any, reference: Any, config: FitConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    given = model_identity(reference) if isinstance(reference, DiffusionPipeline) else reference
    return {
        "version of iec": __version__,
        "settings of the fit": asdict(config),
        "model": model_identity(pipe),
        "technique": technique_of(pipe),
        "reference": given,
        "scheduler": {"kind": type(pipe.scheduler).__name__, **scheduler_settings(pipe.scheduler)},
        "set of inputs": described(inputs),
    }
