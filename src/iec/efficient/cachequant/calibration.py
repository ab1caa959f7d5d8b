"""CacheQuant's calibration: the full steps, the forecast, DEC of the cache, the activations of cached runs, then DEC of
the quantization, or reconstruction.

Each stage streams over the same trajectories again, so that no feature has to be kept for the next. They are
full-precision ones, but of the forecast, whose gains are found in cached ones.
"""

from dataclasses import replace
from typing import Any

import torch

from iec.efficient.accumulators import State, joined, part_of
from iec.efficient.cachequant.config import CacheQuantConfig
from iec.efficient.cachequant.dec import CacheCorrection, QuantizationCorrection
from iec.efficient.cachequant.held import HeldFeatures
from iec.efficient.cachequant.plan import CacheQuantPlan
from iec.efficient.cachequant.reconstruction import collect_cached, reconstruct_cached
from iec.efficient.cachequant.recording import recording_cached
from iec.efficient.cachequant.reentry import reentry_layers
from iec.efficient.caching.calibration import search_steps
from iec.efficient.caching.config import CacheSettings
from iec.efficient.caching.deepcache import branch_of, require_cacheable
from iec.efficient.caching.features import features_of
from iec.efficient.caching.forecast import memory_of
from iec.efficient.caching.forecasting import find_gains
from iec.efficient.checkpoint import Checkpoint
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.network import quantized_copy
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.reconstruction.reconstruct import count_units
from iec.efficient.quantization.statistics import ActivationStatistics
from iec.efficient.stages import Progress, Stages
from iec.efficient.trajectories import Trajectories
from iec.method.clock import current_clock
from iec.storage.fingerprint import fingerprint


def calibrate_cachequant(
    unet: Any,
    config: CacheQuantConfig,
    trajectories: Trajectories,
    on_progress: Progress = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
) -> CacheQuantPlan:
    """The plan of `unet`, over trajectories of its pipeline; `on_progress` counts those of all stages, and
    the units that are reconstructed.

    Raises TypeError or ValueError, before anything is sampled, where the network cannot be cached or quantized, or the
    interval does not fit the steps.
    """
    require_cacheable(unet, config.cache)
    config.cache.require_fit(trajectories.num_steps)
    quantized = config.quantization is not None
    statistics = None if config.quantization is None else ActivationStatistics(coverage(unet, config.quantization))
    units = 0 if config.reconstruction is None or not config.quantization else count_units(unet, config.quantization)
    stages = Stages(
        trajectories, config.cache.searches + config.forecast + 1 + 2 * quantized, on_progress, checkpoint, units
    )

    schedule: CacheSettings = config.cache
    if config.cache.searches:
        schedule = search_steps(unet, config.cache, stages)
    gains = find_gains(unet, schedule, stages) if config.forecast else None
    cache = _Cache(schedule, gains)
    with features_of(unet, config.branch, cache.add):
        stages.run("cache", cache)
    correction = cache.correction
    steps = tuple(sorted(correction.full_steps))
    model = fingerprint(unet)
    plan = CacheQuantPlan(config, correction.num_steps, model, steps, correction.solve(), None, {}, gains=gains)
    if statistics is None:
        return plan
    with recording_cached(unet, statistics, plan):
        stages.run("activations", statistics)
    corrected = () if config.reconstruction is not None else reentry_layers(unet, branch_of(unet, plan.cache))
    quantization = QuantizationPlan.of(unet, statistics, corrected)
    if config.reconstruction is not None:
        plan = replace(plan, quantization=quantization)
        samples, reentry = collect_cached(unet, plan, trajectories, config.reconstruction, stages.next_stage())
        return reconstruct_cached(unet, plan, samples, reentry, stages.folder("reconstruction"), stages.units_left)
    layers = _Layers(unet, plan, quantization)
    with features_of(unet, config.branch, layers.add):
        stages.run("layers", layers)
    solved = {name: fit.solve() for name, fit in layers.fits.items()}
    return replace(plan, quantization=quantization, layers=solved)


class _Cache:
    """DEC of the cache with the full steps of `schedule`; how many calls a run makes its first feature tells."""

    correction: CacheCorrection

    def __init__(self, schedule: CacheSettings, gains: torch.Tensor | None) -> None:
        self.schedule, self.gains = schedule, gains

    def add(self, step: int, feature: torch.Tensor) -> None:
        if not hasattr(self, "correction"):
            self._begin(current_clock().num_steps)
        self.correction.add(step, feature)

    def state(self) -> State:
        return {"num_steps": torch.tensor(self.correction.num_steps), **self.correction.state()}

    def load(self, state: State) -> None:
        self._begin(int(state["num_steps"]))
        self.correction.load(state)

    def _begin(self, num_steps: int) -> None:
        full_steps = self.schedule.full_steps(num_steps)
        self.correction = CacheCorrection(num_steps, full_steps, memory_of(full_steps, self.gains))


class _Layers:
    """DEC of the quantized layers that consume the cached and corrected feature first."""

    def __init__(self, unet: Any, plan: CacheQuantPlan, quantization: QuantizationPlan) -> None:
        self.plan, self.held = plan, HeldFeatures(plan.full_steps, plan.memory)
        self.inputs = reentry_layers(unet, branch_of(unet, plan.cache))
        self.fits: dict[str, QuantizationCorrection] = {}
        covered = coverage(unet, quantization.config)
        for name in self.inputs:
            layer: Any = unet.get_submodule(name)
            copy = quantized_copy(unet, covered, name, quantization.weights, quantization.activations, plan.num_steps)
            weight = layer.weight[:, : copy.widths[0]]
            self.fits[name] = QuantizationCorrection(copy, weight, plan.num_steps)

    def add(self, step: int, feature: torch.Tensor) -> None:
        used = self.plan.corrected(self.held.used(step, feature), step)
        for name, main in self.inputs.items():
            with torch.no_grad():
                self.fits[name].add(main(used))

    def state(self) -> State:
        return joined({name: fit.state() for name, fit in self.fits.items()})

    def load(self, state: State) -> None:
        for name, fit in self.fits.items():
            fit.load(part_of(state, name))
