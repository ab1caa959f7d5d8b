"""The settings of DeepCache."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from iec.efficient.caching.dps import require_interval
from iec.efficient.caching.schedules import centred_schedule, plms_schedule, power_schedule, uniform_schedule

Schedule = Literal["uniform", "plms", "centred", "power", "dps"]


class CacheSettings(Protocol):
    """What a cache needs to know: where a cached step turns back, and which steps are full."""

    @property
    def branch(self) -> int | None:
        """The encoder entry at which a cached step turns back; None: the model's default."""

    def full_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of a run of `num_steps` that are computed in full."""


@dataclass(frozen=True)
class CalibratedSteps:
    """Full steps that were found for runs of one length. Raises ValueError in a run of another."""

    steps: tuple[int, ...]
    num_steps: int
    branch: int | None = None

    def full_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps that are computed in full."""
        if num_steps != self.num_steps:
            raise ValueError(
                f"This cache is calibrated for {self.num_steps} steps, but the run has {num_steps}: "
                f"sample with {self.num_steps} steps, or calibrate again."
            )
        return self.steps


@dataclass(frozen=True)
class DeepCacheConfig:
    """DeepCache: full evaluations at some steps, in between only the shallow layers with the stored deep feature.

    interval: N, on average every N-th step is full.
    branch: the encoder entry at which a cached step turns back (0: the input convolution); None: the model's default,
        for `UNet2DModel` the first downsampler, for `UNet2DConditionModel` 1.
    schedule: `uniform`, `plms` (uniform from the second call on), `centred` (densest around step `centre`, by `power`),
        `power` (densest at the start), or `dps` (found by calibration).
    forecast: whether cached steps forecast the stored feature from the full steps before; its gains are found by
        calibration.

    Raises ValueError or TypeError for an interval below 1, a negative branch, or an unknown schedule.
    """

    interval: int = 5
    branch: int | None = None
    schedule: Schedule = "uniform"
    centre: int = 15
    power: float = 1.4
    forecast: bool = False

    def __post_init__(self) -> None:
        integers = {"interval": self.interval, "branch": self.branch or 0, "centre": self.centre}
        for name, value in integers.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, but is {value!r}.")
        if not isinstance(self.forecast, bool):
            raise TypeError(f"forecast must be True or False, but is {self.forecast!r}.")
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)):
            raise TypeError(f"power must be a number, but is {self.power!r}.")
        if not 1 <= self.power < math.inf:
            raise ValueError(f"power must be a finite number of at least 1, but is {self.power}.")
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, but is {self.interval}.")
        if self.branch is not None and self.branch < 0:
            raise ValueError(f"branch must not be negative, but is {self.branch}.")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"Unknown schedule '{self.schedule}': use {', '.join(get_args(Schedule))}.")

    @property
    def searches(self) -> bool:
        """Whether the full steps are found by calibration."""
        return self.schedule == "dps"

    @property
    def needs_plan(self) -> bool:
        """Whether anything is found by calibration."""
        return self.searches or self.forecast

    def require_applicable(self) -> None:
        """Raise ValueError where something is still to be found."""
        if self.needs_plan:
            missing = "The full steps of the schedule dps" if self.searches else "The gains of a forecast"
            raise ValueError(
                f"{missing} are found by calibration: apply the plan that "
                "iec.efficient.calibrate(pipe, config, num_steps) returns."
            )

    def require_fit(self, num_steps: int) -> None:
        """Raise ValueError where the schedule does not fit a run of `num_steps`."""
        if self.searches:
            require_interval(num_steps, self.interval)
        else:
            self.full_steps(num_steps)

    def full_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of a run of `num_steps` that are computed in full.

        Raises ValueError where interval > num_steps, or where they are still to be found.
        """
        if self.searches:
            self.require_applicable()
        if self.interval > num_steps:
            raise ValueError(
                f"A cache interval of {self.interval} is longer than the run of {num_steps} steps: "
                f"use at most {num_steps}."
            )
        if self.interval == 1:
            return tuple(range(num_steps))
        if self.schedule == "centred":
            return centred_schedule(num_steps, self.interval, self.centre, self.power)
        if self.schedule == "plms":
            return plms_schedule(num_steps, self.interval)
        if self.schedule == "power":
            return power_schedule(num_steps, self.interval, self.power)
        return uniform_schedule(num_steps, self.interval)
