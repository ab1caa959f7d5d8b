"""The demo: an efficient model, the paper's correction, the calibrated one, and rivals of the same cost, pictured."""

import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch

from iec.efficient import DeepCacheConfig
from iec.evaluation.cost import EvaluationCost
from iec.experiments.compare.request import cache_of
from iec.experiments.corrections import CALIBRATED, corrects
from iec.experiments.language import parse_correction, parse_technique
from iec.experiments.plans import CalibratedPlan, Calibration, Plans
from iec.experiments.rows import Judge, Judged, Sampled, Verdict, cached_evaluation_cost, compare, sample_setting
from iec.experiments.samplers.sampled_with import with_solver
from iec.experiments.samplers.sampling import Sampling
from iec.experiments.settings import Setting, Technique, quantizes
from iec.method.adams import AdamsConfig
from iec.models.loading import load_pipeline


@dataclass(frozen=True)
class DemoConfig:
    """The contents of demo.toml; systems: what is shown where the user asks for nothing else, with its steps."""

    num_steps: int
    corrections: tuple[str, ...]
    solvers: tuple[Any, ...]
    reference_steps: int
    samples: int
    evaluations: int
    minimum_images: int
    batch_size: int
    dtype: str
    systems: tuple[Setting, ...]

    @classmethod
    def load(cls) -> "DemoConfig":
        """The demo.toml of the package."""
        found: dict[str, Any] = tomllib.loads((files("iec.experiments") / "demo.toml").read_text(encoding="utf-8"))
        systems = found.pop("systems")
        for name in ("corrections", "solvers"):
            found[name] = tuple(found[name])
        return cls(**found, systems=tuple(Setting(s["num_steps"], parse_technique(s["technique"])) for s in systems))


@dataclass(frozen=True)
class System:
    """One efficient model: uncorrected, with each correction, and the plain settings of no more cost."""

    base: Setting
    corrected: tuple[Setting, ...]
    rivals: tuple[Setting, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """All of them, in the order of the demo's story."""
        return (self.base, *self.corrected, *self.rivals)


@dataclass(frozen=True)
class Plan:
    """The settings to run, each once. reference: full precision, which stands for the exact solution.

    unit: what a cached evaluation costs.
    """

    reference: Setting
    systems: tuple[System, ...]
    unit: EvaluationCost
    num_images: int

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting once, the reference first."""
        return tuple(dict.fromkeys([self.reference, *(one for system in self.systems for one in system.settings)]))

    @property
    def evaluations(self) -> float:
        """What all of it will cost, in full evaluations."""
        return self.num_images * sum(setting.cost(self.unit) for setting in self.settings)


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo found: the rows in order of the plan, and the verdicts on the corrected ones.

    A verdict's rivals are the rows of the same system that cost no more and whose evaluations cost the same.
    """

    config: DemoConfig
    plan: Plan
    seed: int
    rows: tuple[Judged, ...]
    verdicts: dict[Setting, tuple[Verdict, ...]]
    seconds: float

    def row(self, setting: Setting) -> Judged:
        """The row of one setting."""
        return next(row for row in self.rows if row.sampled.setting == setting)

    def best(self, settings: Sequence[Setting]) -> Setting:
        """The setting of the lowest kernel distance."""
        return min(settings, key=lambda setting: self.row(setting).figures.kernel.value)


def make_plan(
    config: DemoConfig, systems: Sequence[Setting], unit: EvaluationCost, num_images: int | None = None
) -> Plan:
    """Which settings the demo runs, and with how many images: as many as fit the evaluations, at least the minimum."""
    reference = Setting(config.reference_steps, None, AdamsConfig())
    plan = Plan(reference, tuple(_system(config, base, unit) for base in systems), unit, 1)
    fitting = int(config.evaluations / plan.evaluations) // config.batch_size * config.batch_size
    return replace(plan, num_images=max(config.minimum_images, fitting) if num_images is None else num_images)


def _system(config: DemoConfig, base: Setting, unit: EvaluationCost) -> System:
    corrected = tuple(replace(base, correction=parse_correction(text)) for text in config.corrections)
    # What costs as much without a cache: on the same weights, where they are quantized.
    uncached, steps = base.plain(1), max(1, int(base.cost(unit)))
    rivals = [] if cache_of(base.technique) is None else [replace(uncached, num_steps=steps)]
    rivals += [replace(uncached, num_steps=steps, sampler=Sampling(solver)) for solver in config.solvers]
    if not quantizes(base.technique):
        rivals.append(replace(uncached, num_steps=steps, correction=CALIBRATED))
    return System(base, corrected, tuple(dict.fromkeys(setting for setting in rivals if setting != base)))


def run_demo(
    seed: int = 0,
    num_images: int | None = None,
    techniques: Sequence[Technique] = (),
    given: CalibratedPlan | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_setting: Callable[[Setting], None] = lambda setting: None,
    on_evaluations: Callable[[float], None] = lambda evaluations: None,
) -> DemoResult:
    """Sample and judge every setting of the plan; the callbacks tell of progress, counted in full evaluations.

    techniques: what is shown in the place of demo.toml's systems; all caches among them at one branch. given: a plan
    that is shown too, and not calibrated again.
    Raises ValueError or TypeError where the embedded model cannot take one, before anything is sampled.
    """
    began = time.perf_counter()
    config = DemoConfig.load()
    shown = tuple(Setting(config.num_steps, technique) for technique in techniques)
    if given is not None:
        shown += (Setting(given.num_steps, given.config),)
    shown = shown or config.systems
    branches = {cache.branch for setting in shown if (cache := cache_of(setting.technique)) is not None}
    if len(branches) > 1:
        raise ValueError("The demo counts cached evaluations at one branch: give all caches the same.")
    pipe = load_pipeline(dtype=getattr(torch, config.dtype))
    unit = cached_evaluation_cost(pipe, DeepCacheConfig(2, next(iter(branches), None)), config.num_steps)
    for setting in shown:
        DeepCacheConfig(setting.interval).full_steps(setting.num_steps)
    plan = make_plan(config, shown, unit, num_images)
    plans = Plans(Calibration(config.samples))
    if given is not None:
        plans.keep(pipe, given)
    on_plan(plan)
    sampled: list[Sampled] = []
    for setting in plan.settings:
        on_setting(setting)

        def on_batch(images: int, cost: float = setting.cost(unit)) -> None:
            on_evaluations(images * cost)

        own = with_solver(pipe, setting.sampler)
        sampled.append(sample_setting(own, setting, plan.num_images, seed, config.batch_size, plans, on_batch))
    judge = Judge(sampled[0].images)
    rows = tuple(Judged(one, judge.judge(one.images)) for one in sampled)
    verdicts = {
        setting: _verdicts(setting, system, rows)
        for system in plan.systems
        for setting in system.corrected
        if corrects(setting.correction)
    }
    return DemoResult(config, plan, seed, rows, verdicts, time.perf_counter() - began)


def _verdicts(setting: Setting, system: System, rows: Sequence[Judged]) -> tuple[Verdict, ...]:
    by_setting = {row.sampled.setting: row for row in rows}
    ours = by_setting[setting]
    others = [by_setting[other] for other in system.settings if other != setting]
    affordable = [other for other in others if other.sampled.cost <= ours.sampled.cost + 1e-9]
    return tuple(compare(ours.figures, other.figures, other.sampled.setting) for other in affordable)
