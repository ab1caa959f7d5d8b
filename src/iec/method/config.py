"""The settings of the correction, validated when they are made."""

import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from iec.method.steps import StepSelector, validate_selector

ToleranceMode = Literal["relative", "absolute"]
CachePolicy = Literal["refresh", "bypass", "reuse"]


@dataclass(frozen=True)
class IECConfig:
    """How to correct each step; the defaults are the paper's (lambda 0.5, K 1, every full step).

    relaxation: lambda in [0, 2), one value or one per iteration.
    num_iterations: K, the correction passes of a selected step.
    steps: which steps (see `iec.method.steps`).
    cached_steps: also correct steps that a feature cache served.
    tolerance, tolerance_mode: a sample whose update is smaller than this is frozen; `relative` is
        ||x^(k+1) - x^(k)|| / (||x^(k)|| + 1e-12) per sample, `absolute` its numerator.
    cache: what a pass does with a feature cache. `refresh`: forced full, its features replace the cached ones
        (the paper's code); `bypass`: forced full, the cache is left alone; `reuse`: the cache decides again.

    Raises ValueError or TypeError, in one sentence, for anything outside these ranges (paper Eq. 10-13).
    """

    relaxation: float | tuple[float, ...] = 0.5
    num_iterations: int = 1
    steps: StepSelector = "all"
    cached_steps: bool = False
    tolerance: float = 1e-5
    tolerance_mode: ToleranceMode = "relative"
    cache: CachePolicy = "refresh"

    def __post_init__(self) -> None:
        _require_int("num_iterations", self.num_iterations)
        if self.num_iterations < 0:
            raise ValueError(f"num_iterations must not be negative, but is {self.num_iterations}.")
        self._validate_relaxation()
        _require_number("tolerance", self.tolerance)
        if not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            raise ValueError(f"tolerance must be a finite number of at least 0, but is {self.tolerance}.")
        if not isinstance(self.cached_steps, bool):
            raise TypeError(f"cached_steps must be True or False, but is {self.cached_steps!r}.")
        _require_choice("tolerance_mode", self.tolerance_mode, ("relative", "absolute"))
        _require_choice("cache", self.cache, ("refresh", "bypass", "reuse"))
        validate_selector(self.steps)
        if not isinstance(self.steps, str) and not callable(self.steps):
            object.__setattr__(self, "steps", tuple(sorted({operator.index(step) for step in self.steps})))

    def _validate_relaxation(self) -> None:
        values: Any = self.relaxation
        if isinstance(values, (list, tuple)):
            values = tuple(values)
            if len(values) != self.num_iterations:
                raise ValueError(
                    f"relaxation has {len(values)} values for {self.num_iterations} iterations: "
                    "give one value, or one per iteration."
                )
            object.__setattr__(self, "relaxation", values)
        else:
            values = (values,)
        for value in values:
            _require_number("relaxation", value)
            if not 0 <= value < 2:
                raise ValueError(f"relaxation must lie in [0, 2), but is {value}.")

    @property
    def relaxations(self) -> tuple[float, ...]:
        """Lambda of each iteration."""
        if isinstance(self.relaxation, tuple):
            return self.relaxation
        return (float(self.relaxation),) * self.num_iterations

    @classmethod
    def paper(cls) -> "IECConfig":
        """The published setting: lambda 0.5, one iteration (paper section 4)."""
        return cls()

    @classmethod
    def released(cls) -> "IECConfig":
        """The setting of the published latent-diffusion code: two iterations with lambda 1, then 0.5."""
        return cls(relaxation=(1.0, 0.5), num_iterations=2, tolerance=1e-6)

    @classmethod
    def stable_diffusion(cls) -> "IECConfig":
        """The published setting of Stable Diffusion: only the first step is corrected (paper section 4, spec 1.5).

        Its sampler is PLMS with 50 steps: diffusers' `PNDMScheduler(skip_prk_steps=True)` and
        `num_inference_steps=50`, or `iec.sample(sampler="plms", spacing="uniform", num_steps=50)`.
        """
        return cls(steps="first")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values. Raises ValueError where `steps` is a callable, which has none."""
        if callable(self.steps):
            raise ValueError("A callable step selector cannot be written down: use step indices instead.")
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "IECConfig":
        """The inverse of `to_dict`. Raises ValueError for an unknown setting."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"Unknown correction setting '{unknown[0]}': the settings are {', '.join(known)}.")
        return cls(**values)


def _require_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, but is {value!r}.")


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but is {value!r}.")


def _require_choice(name: str, value: Any, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {value!r}.")
