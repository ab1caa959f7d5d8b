"""The calibrated correction: a few fitted numbers per step, applied to the outputs that were made anyway."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iec.method.adams import adams_relaxation
from iec.method.output_corrector import OutputChange
from iec.method.output_history import OutputHistory, correction_term


@dataclass(frozen=True)
class StepCoefficients:
    """The fitted numbers of every step of one grid.

    timesteps: T, in sampling order. coefficients: lambda, float64 [T, m, bands], of 1 or 3 bands.
    constants: b, float64 [T, C], or None. channel_axis: that of C in an output. grid: of packed tokens, as of
    `features`. full_steps: which steps a cache computed in full while fitting; None where it had no say.
    """

    timesteps: tuple[float, ...]
    coefficients: torch.Tensor
    constants: torch.Tensor | None = None
    channel_axis: int = 1
    grid: tuple[int, int] | None = None
    full_steps: tuple[bool, ...] | None = None

    @property
    def history(self) -> int:
        """m, the number of differences."""
        return int(self.coefficients.shape[1])

    @property
    def num_bands(self) -> int:
        """How many coefficients a difference has."""
        return int(self.coefficients.shape[2])

    def begin(self, timesteps: Sequence[float]) -> "CalibratedRun":
        """Start a run. Raises ValueError where its timesteps are not those of the fit."""
        require_timesteps(self.timesteps, timesteps)
        return CalibratedRun(self)

    def term(self, step: int, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """What is added to the newest of the outputs [B, ...] at a step.

        Raises ValueError where they have another number of channels.
        """
        constant = None if self.constants is None else self.constants[step]
        if constant is not None and outputs[-1].shape[self.channel_axis] != len(constant):
            raise ValueError(
                f"This correction was calibrated for outputs of {len(constant)} channels, but the run has "
                f"{outputs[-1].shape[self.channel_axis]}: calibrate for this model."
            )
        return correction_term(outputs, self.coefficients[step], constant, self.channel_axis, self.grid)


class CalibratedRun:
    """One run of a calibrated correction; a step that a cache served otherwise than while fitting is Adams'."""

    def __init__(self, fitted: StepCoefficients) -> None:
        self._fitted = fitted
        self._history = OutputHistory(fitted.timesteps, max(1, fitted.history))
        self._step = -1
        self._adams = torch.tensor([adams_relaxation(len(fitted.timesteps))], dtype=torch.float64)

    def before_step(self, timestep: float, output: torch.Tensor, full: bool = True) -> OutputChange:
        """sum_j lambda_ij (h_{i-j+1} - h_{i-j}) + b_i at the step of `timestep`."""
        fitted, step = self._fitted, self._next_step(timestep)
        outputs = self._history.add(fitted.timesteps[step], output)
        if fitted.full_steps is None or fitted.full_steps[step] == full:
            term = fitted.term(step, outputs)
            return OutputChange(term, "none" if term is None else "plan")
        term = correction_term(outputs, self._adams)
        return OutputChange(term, "none" if term is None else "adams")

    def _next_step(self, timestep: float) -> int:
        """The step after the last one, or the first at `timestep`: a run may begin inside, and begin again."""
        timesteps = self._fitted.timesteps
        self._step += 1
        if self._step >= len(timesteps) or not _same(timesteps[self._step], timestep):
            places = [step for step, own in enumerate(timesteps) if _same(own, timestep)]
            if not places:
                raise ValueError(
                    f"This correction was not calibrated for timestep {timestep:g}: sample over the same timesteps, "
                    "or calibrate again."
                )
            self._step = places[0]
        return self._step


def require_timesteps(calibrated: Sequence[float], run: Sequence[float]) -> None:
    """Raise ValueError, in one sentence, unless a run's timesteps are the calibrated ones."""
    if len(calibrated) != len(run):
        raise ValueError(
            f"This correction is calibrated for {len(calibrated)} steps, but the run has {len(run)}: "
            f"sample with {len(calibrated)} steps, or calibrate again."
        )
    if not all(map(_same, calibrated, run)):
        raise ValueError(
            f"This correction is calibrated for the timesteps {_short(calibrated)}, but the run has {_short(run)}: "
            "use the same scheduler, spacing and shift, or calibrate again."
        )


def _same(a: float, b: float) -> bool:
    # Schedulers keep timesteps in float32, and other devices compute them in another order.
    return abs(a - b) <= 1e-4 * max(1.0, abs(a))


def _short(timesteps: Sequence[float]) -> str:
    shown = ", ".join(f"{t:g}" for t in timesteps[:3])
    return f"{shown}, ... ({len(timesteps)})" if len(timesteps) > 3 else shown
