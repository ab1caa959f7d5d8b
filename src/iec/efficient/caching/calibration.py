"""The calibration of a feature cache: the full steps that DPS finds over full-precision trajectories (spec 3.1)."""

import math
from collections.abc import Callable
from typing import Any

import torch

from iec.efficient.caching.config import CalibratedSteps, DeepCacheConfig
from iec.efficient.caching.deepcache import require_cacheable
from iec.efficient.caching.dps import FeatureDistances, dps_schedule
from iec.efficient.caching.features import features_of
from iec.efficient.caching.plan import DeepCachePlan
from iec.efficient.trajectories import Trajectories
from iec.method.clock import current_clock
from iec.storage.fingerprint import fingerprint


def calibrate_deepcache(
    unet: Any,
    config: DeepCacheConfig,
    trajectories: Trajectories,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DeepCachePlan:
    """The plan of `unet`, over trajectories of its pipeline; `on_progress(done, total)` counts them.

    Raises TypeError or ValueError, before anything is sampled, where the network cannot be cached, the interval does
    not fit the steps, or there is nothing to find.
    """
    if not config.searches:
        raise ValueError(f"The schedule {config.schedule} needs no calibration: apply the DeepCacheConfig itself.")
    require_cacheable(unet, config)
    config.require_fit(trajectories.num_steps)
    found = search_steps(unet, config, trajectories.num_steps, lambda: trajectories.run(on_progress))
    return DeepCachePlan(config, found.num_steps, fingerprint(unet), found.steps)


def search_steps(unet: Any, config: DeepCacheConfig, num_steps: int, run: Callable[[], None]) -> CalibratedSteps:
    """The full steps that DPS finds in the runs of `unet` that `run` makes, each nominally of `num_steps` steps.

    A sampler may make more calls than steps, as PLMS does: the cache then counts the calls, but the number of full
    ones is that of the steps, ceil(T/N). The features of the last 2N calls are held.
    """
    seen: list[FeatureDistances] = []

    def add(step: int, feature: torch.Tensor) -> None:
        if not seen:
            seen.append(FeatureDistances(current_clock().num_steps, config.interval))
        seen[0].add(step, feature)

    with features_of(unet, config.branch, add):
        run()
    table = seen[0].table
    steps = dps_schedule(table, config.interval, math.ceil(num_steps / config.interval))
    return CalibratedSteps(steps, len(table), config.branch)
