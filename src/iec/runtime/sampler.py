"""Which sampler a plan was calibrated with: the scheduler's class and its timesteps."""

import copy
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sampler:
    """A scheduler's class name, and the timesteps of one run in sampling order."""

    scheduler: str
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, scheduler: Any, num_steps: int) -> "Sampler | None":
        """The sampler of a run of `num_steps` steps; None where the scheduler needs more than their number."""
        own = copy.deepcopy(scheduler)
        try:
            own.set_timesteps(num_steps)
        except (TypeError, ValueError):
            return None
        return cls.as_set(own)

    @classmethod
    def as_set(cls, scheduler: Any) -> "Sampler":
        """The sampler of a scheduler whose timesteps are set."""
        timesteps = torch.as_tensor(scheduler.timesteps).double().tolist()
        return cls(type(scheduler).__name__, tuple(timesteps))

    def require(self, scheduler: Any) -> None:
        """Raise ValueError, in one sentence, unless `scheduler` is of this class with these timesteps."""
        found = Sampler.as_set(scheduler)
        if found.scheduler != self.scheduler:
            raise ValueError(
                f"This model is calibrated for {self.scheduler}, but the run uses {found.scheduler}: "
                "use that scheduler, or calibrate again."
            )
        if found.timesteps != self.timesteps:
            raise ValueError(
                f"This model is calibrated for the timesteps {_short(self.timesteps)}, but the run has "
                f"{_short(found.timesteps)}: use the same spacing, or calibrate again."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> "Sampler | None":
        """The inverse of `sampler_settings`."""
        return None if values is None else cls(str(values["scheduler"]), tuple(map(float, values["timesteps"])))


def sampler_settings(sampler: Sampler | None) -> dict[str, Any] | None:
    """A sampler as JSON values."""
    if sampler is None:
        return None
    return {"scheduler": sampler.scheduler, "timesteps": list(sampler.timesteps)}


def _short(timesteps: tuple[float, ...]) -> str:
    shown = ", ".join(f"{t:g}" for t in timesteps[:3])
    return f"{shown}, ... ({len(timesteps)})" if len(timesteps) > 3 else shown
