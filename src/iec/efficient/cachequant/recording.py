"""The activations of a cached run, recorded beside the full-precision trajectory that goes on (spec 4.3)."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from iec.efficient.cachequant.plan import CacheQuantPlan
from iec.efficient.caching.deepcache import cached_class
from iec.efficient.quantization.statistics import ActivationStatistics, recording
from iec.method.clock import Clock, current_clock
from iec.runtime import subclass


@contextmanager
def recording_cached(unet: Any, statistics: ActivationStatistics, plan: CacheQuantPlan) -> Iterator[None]:
    """While entered, runs of the float `unet` stay what they are, and are counted as those of `plan` would be.

    At a full step that is the evaluation itself. At a cached step the shallow path is evaluated as well, with the
    stored and corrected feature, and every layer that it runs is counted there; only the layers that it skips are
    counted in the full evaluation, for passes that are forced full. Correction passes are not counted.
    """
    base, covered = type(unet), statistics.covered
    cached = cached_class(base, plan.cache, plan.corrected, plan.memory)

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        clock = current_clock()
        if clock.pass_index:
            return base.forward(self, *args, **kwargs)
        # The cached run has a clock of its own, so that its features and its choices stay out of the full run.
        beside: Clock = clock.storage.setdefault(statistics, Clock(clock.num_steps))
        beside.num_steps, beside.step = clock.num_steps, clock.step
        beside.begin_pass(0)
        on_path: set[str] = set()

        def count_on_path(key: str, values: torch.Tensor) -> None:
            on_path.add(key)
            statistics.add(key, values)

        def count_the_rest(key: str, values: torch.Tensor) -> None:
            if key not in on_path:
                statistics.add(key, values)

        with beside, recording(self, covered, count_on_path):
            output = cached.forward(self, *args, **kwargs)
        if beside.full:
            return output
        with recording(self, covered, count_the_rest):
            return base.forward(self, *args, **kwargs)

    unet.__class__ = subclass(base, forward=forward)
    try:
        yield
    finally:
        unet.__class__ = base
