"""The demo: efficient, corrected, compared at equal cost, and pictured, on the embedded model."""

import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch

from iec.efficient import DeepCacheConfig, QuantizationConfig
from iec.evaluation.cost import EvaluationCost
from iec.experiments.plans import CalibratedPlan, Plans
from iec.experiments.rows import Judge, Judged, Sampled, Verdict, cached_evaluation_cost, compare, sample_setting
from iec.experiments.settings import Setting, Technique, rivals
from iec.method.config import IECConfig
from iec.models.loading import load_pipeline


@dataclass(frozen=True)
class DemoConfig:
    """The contents of demo.toml."""

    num_steps: int
    intervals: tuple[int, ...]
    branch: int
    corrections: tuple[str, ...]
    evaluations: int
    minimum_images: int
    batch_size: int
    dtype: str

    @classmethod
    def load(cls) -> "DemoConfig":
        """The demo.toml of the package."""
        found: dict[str, Any] = tomllib.loads((files("iec.experiments") / "demo.toml").read_text(encoding="utf-8"))
        for name in ("intervals", "corrections"):
            found[name] = tuple(found[name])
        return cls(**found)

    @property
    def techniques(self) -> tuple[Technique, ...]:
        """What the demo shows where the user asks for nothing else."""
        return tuple(DeepCacheConfig(interval, self.branch) for interval in self.intervals)


@dataclass(frozen=True)
class Plan:
    """The settings to run, each once: the uncorrected ones, full precision first, and the corrected ones' rivals.

    unit: what a cached evaluation costs.
    """

    bases: tuple[Setting, ...]
    settings: tuple[Setting, ...]
    rivals: dict[Setting, list[Setting]]
    unit: EvaluationCost
    num_images: int

    @property
    def evaluations(self) -> float:
        """What all of it will cost, in full evaluations."""
        return self.num_images * sum(setting.cost(self.unit) for setting in self.settings)


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo found: the rows in order of the plan, and the verdicts on the corrected ones."""

    config: DemoConfig
    plan: Plan
    seed: int
    rows: tuple[Judged, ...]
    verdicts: dict[Setting, tuple[Verdict, ...]]
    seconds: float

    def row(self, setting: Setting) -> Judged:
        """The row of one setting."""
        return next(row for row in self.rows if row.sampled.setting == setting)


def make_plan(
    config: DemoConfig, techniques: Sequence[Technique], unit: EvaluationCost, num_images: int | None = None
) -> Plan:
    """Which settings the demo runs, and with how many images: as many as fit the evaluations, at least the minimum."""
    bases = [Setting(config.num_steps, technique) for technique in (None, *techniques)]
    corrected = [replace(base, correction=IECConfig(steps=steps)) for base in bases for steps in config.corrections]
    found = {setting: rivals(setting, unit) for setting in corrected}
    everything = [*bases, *corrected, *(rival for group in found.values() for rival in group)]
    settings = tuple(dict.fromkeys(everything))
    cost = sum(setting.cost(unit) for setting in settings)
    fitting = int(config.evaluations / cost) // config.batch_size * config.batch_size
    count = max(config.minimum_images, fitting) if num_images is None else num_images
    return Plan(tuple(bases), settings, found, unit, count)


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

    techniques: what is shown in the place of demo.toml's caches; all caches among them at one branch. given: a plan
    that is shown too, and not calibrated again.
    Raises ValueError or TypeError where the embedded model cannot take one, before anything is sampled.
    """
    began = time.perf_counter()
    config = DemoConfig.load()
    if given is not None and given.num_steps != config.num_steps:
        raise ValueError(f"The demo makes {config.num_steps} steps, but the plan is for {given.num_steps}.")
    shown = (*techniques, *([] if given is None else [given.config])) or config.techniques
    branches = {technique.branch for technique in shown if not isinstance(technique, QuantizationConfig)}
    if len(branches) > 1:
        raise ValueError("The demo counts cached evaluations at one branch: give all caches the same.")
    pipe = load_pipeline(dtype=getattr(torch, config.dtype))
    unit = cached_evaluation_cost(pipe, DeepCacheConfig(2, next(iter(branches), None)), config.num_steps)
    for technique in shown:
        DeepCacheConfig(Setting(config.num_steps, technique).interval).full_steps(config.num_steps)
    plan = make_plan(config, shown, unit, num_images)
    plans = Plans()
    if given is not None:
        plans.keep(pipe, given)
    on_plan(plan)
    sampled: list[Sampled] = []
    for setting in plan.settings:
        on_setting(setting)

        def on_batch(images: int, cost: float = setting.cost(unit)) -> None:
            on_evaluations(images * cost)

        sampled.append(sample_setting(pipe, setting, plan.num_images, seed, config.batch_size, plans, on_batch))
    judge = Judge(sampled[0].images)
    rows = tuple(Judged(one, judge.judge(one.images)) for one in sampled)
    by_setting = {row.sampled.setting: row for row in rows}
    verdicts = {
        setting: tuple(compare(by_setting[setting].figures, by_setting[rival].figures, rival) for rival in group)
        for setting, group in plan.rivals.items()
    }
    return DemoResult(config, plan, seed, rows, verdicts, time.perf_counter() - began)
