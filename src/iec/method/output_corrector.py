"""Correctors that change a model output before the sampler steps with it, from the outputs that were made anyway.

They make no evaluation. h is the model output in the variable in which the sampler's ODE is straight: the noise
prediction for variance-preserving schedules, the velocity for flow matching.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

#: By which rule a step was corrected.
Rule = Literal["plan", "adams", "none"]


@dataclass(frozen=True)
class OutputChange:
    """What is added to an output, of its shape [B, ...] (None: nothing), and by which rule."""

    term: torch.Tensor | None
    rule: Rule


class OutputRun(Protocol):
    """One run of a corrector."""

    def before_step(self, timestep: float, output: torch.Tensor, full: bool = True) -> OutputChange:
        """What to add to h [B, ...], the raw output at `timestep`, before the sampler steps with it.

        full: whether it was computed in full, and not with the help of a feature cache.
        """


@runtime_checkable
class OutputCorrector(Protocol):
    """A correction that needs no evaluation: `iec.AdamsConfig`, a plan, or one of your own."""

    def begin(self, timesteps: Sequence[float]) -> OutputRun:
        """Start a run over these timesteps, in sampling order. Raises ValueError where it is made for others."""
