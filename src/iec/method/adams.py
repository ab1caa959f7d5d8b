"""Adams' correction: the two-step Adams-Bashforth rule on whatever first-order step the scheduler takes, without data.

h^_i = h_i + lambda (h_i - h_{i-1}). With steps of equal length in the variable of the ODE, lambda is 1/2; over few
steps, on the grids that diffusion samplers use, a larger one is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from iec.method.output_corrector import OutputChange
from iec.method.output_history import OutputHistory, correction_term

#: The default lambda is ADAMS + EXTRA / T, at most ADAMS + CAP: chosen over both embedded models (docs/correction.md).
ADAMS, EXTRA, CAP = 0.5, 2.0, 0.2


@dataclass(frozen=True)
class AdamsConfig:
    """Correct each output by its last change, at no evaluation and without a plan.

    relaxation: lambda in [0, 2), the share of the last change that is added; None: a default for the number of steps.

    Raises ValueError or TypeError, in one sentence, for anything else.
    """

    relaxation: float | None = None

    def __post_init__(self) -> None:
        value = self.relaxation
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"relaxation must be a number or None, but is {value!r}.")
        if not (math.isfinite(value) and 0 <= value < 2):
            raise ValueError(f"relaxation must lie in [0, 2), but is {value}.")

    def relaxation_over(self, num_steps: int) -> float:
        """Lambda in a run of `num_steps` steps."""
        return adams_relaxation(num_steps) if self.relaxation is None else float(self.relaxation)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"kind": "adams", "relaxation": self.relaxation}

    def begin(self, timesteps: Sequence[float]) -> "AdamsRun":
        """Start a run over these timesteps."""
        return AdamsRun(timesteps, self.relaxation_over(len(timesteps)))


class AdamsRun:
    """One run of Adams' correction."""

    def __init__(self, timesteps: Sequence[float], relaxation: float) -> None:
        self._coefficients = torch.tensor([relaxation] if relaxation else [], dtype=torch.float64)
        self._history = OutputHistory(timesteps, len(self._coefficients))

    def before_step(self, timestep: float, output: torch.Tensor, full: bool = True) -> OutputChange:
        """lambda (h_i - h_{i-1}); nothing at the first step."""
        term = correction_term(self._history.add(timestep, output), self._coefficients)
        return OutputChange(term, "none" if term is None else "adams")


def adams_relaxation(num_steps: int) -> float:
    """The default lambda over `num_steps` steps; 1/2, Adams' own, in the limit."""
    return ADAMS + min(CAP, EXTRA / max(1, num_steps))
