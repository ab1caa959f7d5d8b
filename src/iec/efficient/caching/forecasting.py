"""Finding a forecast's gains in closed loop: each is fitted over trajectories that use those found before it.

All trajectories go together. At a cached step each is also evaluated in full, at the state that it is in; when all are
there the step's gains are fitted, and they go on with the forecast feature.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from iec.efficient.accumulators import State
from iec.efficient.caching.config import CacheSettings, DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class
from iec.efficient.caching.forecast import TERMS, Forecast
from iec.efficient.caching.gains import GainFit
from iec.efficient.lockstep import wait_for_all
from iec.efficient.stages import Stages
from iec.method.clock import Clock, current_clock
from iec.runtime import subclass


def find_gains(unet: Any, schedule: CacheSettings, stages: Stages) -> torch.Tensor:
    """The gains, float64 [T, 2], of `unet` cached with `schedule`, in the next of the stages; 0 where there is no
    forecast. T counts the evaluations of a run.

    Raises ValueError where a feature is not finite.
    """
    gains = _Gains(schedule)
    with _finding(unet, gains):
        stages.run_together("forecast", gains)
    return gains.gains


class _Gains:
    """The gains of the first `found` steps, and the fit of the next cached one."""

    gains: torch.Tensor
    forecast: Forecast

    def __init__(self, schedule: CacheSettings) -> None:
        self.schedule, self.found, self._fit, self._step = schedule, 0, GainFit(), 0

    def begin(self, num_steps: int) -> None:
        """Once a run's length is known."""
        if not hasattr(self, "gains"):
            self.gains = torch.zeros(num_steps, TERMS, dtype=torch.float64)
        if not hasattr(self, "forecast"):
            self.forecast = Forecast(self.schedule.full_steps(num_steps), self.gains)

    def lacks(self, step: int) -> bool:
        """Whether gains of `step` are still to be found."""
        full, *earlier = self.forecast.history(step)
        return step >= self.found and step != full and bool(earlier)

    def add(self, owner: Any, clock: Clock, feature: torch.Tensor) -> None:
        """Count the full feature of the clock's step beside what its run has stored."""
        self._step = clock.step
        differences = self.forecast.differences(clock.storage, owner, clock.step)
        self._fit.add(differences, feature - clock.storage[owner])

    def meet(self) -> float:
        self.gains[self._step] = self._fit.solve()
        self.found, self._fit = self._step + 1, GainFit()
        return self.found / len(self.gains)

    def state(self) -> State:
        return {"found": torch.tensor(self.found), "gains": self.gains}

    def load(self, state: State) -> None:
        self.found, self.gains = int(state["found"]), state["gains"]


@contextmanager
def _finding(unet: Any, gains: _Gains) -> Iterator[None]:
    """While entered, runs of `unet` are cached and forecast with `gains`, and look for those that it lacks."""
    base = type(unet)
    whole = cached_class(base, DeepCacheConfig(interval=1, branch=gains.schedule.branch))

    @functools.cache
    def cached_run(num_steps: int) -> type[Any]:
        gains.begin(num_steps)
        return cached_class(base, gains.schedule, memory=gains.forecast)

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        clock = current_clock()
        cached = cached_run(clock.num_steps)
        if gains.lacks(clock.step):
            # A clock of its own, so that this evaluation leaves the run's features and choices alone.
            beside = Clock(clock.num_steps)
            beside.step = clock.step
            with beside:
                whole.forward(self, *args, **kwargs)
            gains.add(self, clock, beside.storage[self])
            del beside  # its feature, while the others come here
            wait_for_all()
        return cached.forward(self, *args, **kwargs)

    unet.__class__ = subclass(base, forward=forward)
    try:
        yield
    finally:
        unet.__class__ = base
