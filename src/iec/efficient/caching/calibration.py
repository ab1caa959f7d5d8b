"""The calibration of a feature cache: the full steps that DPS finds (spec 3.1), and the gains of a forecast."""

import math
from typing import Any

import torch

from iec.efficient.accumulators import State
from iec.efficient.caching.config import CacheSettings, CalibratedSteps, DeepCacheConfig
from iec.efficient.caching.deepcache import require_cacheable
from iec.efficient.caching.dps import FeatureDistances, dps_schedule
from iec.efficient.caching.features import features_of
from iec.efficient.caching.forecasting import find_gains
from iec.efficient.caching.plan import DeepCachePlan
from iec.efficient.checkpoint import Checkpoint
from iec.efficient.stages import Progress, Stages
from iec.efficient.trajectories import Trajectories
from iec.method.clock import current_clock
from iec.storage.fingerprint import fingerprint


def calibrate_deepcache(
    unet: Any,
    config: DeepCacheConfig,
    trajectories: Trajectories,
    on_progress: Progress = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
) -> DeepCachePlan:
    """The plan of `unet`, over trajectories of its pipeline; `on_progress(done, total)` counts them.

    Raises TypeError or ValueError, before anything is sampled, where the network cannot be cached, the interval does
    not fit the steps, or there is nothing to find.
    """
    if not config.needs_plan:
        raise ValueError(f"The schedule {config.schedule} needs no calibration: apply the DeepCacheConfig itself.")
    require_cacheable(unet, config)
    config.require_fit(trajectories.num_steps)
    stages = Stages(trajectories, config.searches + config.forecast, on_progress, checkpoint)
    schedule: CacheSettings = config
    if config.searches:
        schedule = found = search_steps(unet, config, stages)
        if not config.forecast:
            return DeepCachePlan(config, found.num_steps, fingerprint(unet), found.steps)
    gains = find_gains(unet, schedule, stages)
    return DeepCachePlan(config, len(gains), fingerprint(unet), schedule.full_steps(len(gains)), gains=gains)


def search_steps(unet: Any, config: DeepCacheConfig, stages: Stages) -> CalibratedSteps:
    """The full steps that DPS finds for `unet`, in the next of the stages.

    A sampler may make more calls than steps, as PLMS does: the cache then counts the calls, but the number of full
    ones is that of the steps, ceil(T/N). The features of the last 2N calls are held.
    """
    distances = _Distances(config.interval)
    with features_of(unet, config.branch, distances.add):
        stages.run("full_steps", distances)
    steps = dps_schedule(distances.table, config.interval, math.ceil(stages.trajectories.num_steps / config.interval))
    return CalibratedSteps(steps, len(distances.table), config.branch)


class _Distances:
    """The distances between features; how many calls a run makes its first feature tells."""

    distances: FeatureDistances

    def __init__(self, interval: int) -> None:
        self.interval = interval

    @property
    def table(self) -> torch.Tensor:
        return self.distances.table

    def add(self, step: int, feature: torch.Tensor) -> None:
        if not hasattr(self, "distances"):
            self.distances = FeatureDistances(current_clock().num_steps, self.interval)
        self.distances.add(step, feature)

    def state(self) -> State:
        return {"table": self.table}

    def load(self, state: State) -> None:
        self.distances = FeatureDistances(len(state["table"]), self.interval)
        self.distances.table.copy_(state["table"])
