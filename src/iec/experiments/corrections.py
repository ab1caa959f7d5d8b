"""The corrections that experiments compare: the paper's, Adams', and those that are fitted when first needed."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from iec.evaluation.corrections import recorded_correction
from iec.method.adams import AdamsConfig
from iec.method.config import IECConfig
from iec.method.steps import select_steps


@dataclass(frozen=True)
class FittedCorrection:
    """A correction whose numbers are fitted: the outputs' (calibrated), or with `relaxation` IEC's lambda of each step.

    history, bias, bands: as of `iec.calibrate_correction`.
    """

    history: int | None = None
    bias: bool | None = None
    bands: int | None = None
    relaxation: Literal["fitted"] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; what is left open is left out."""
        return {"kind": "fitted", **{name: value for name, value in asdict(self).items() if value is not None}}


def asked_correction(wanted: bool, **options: Any) -> FittedCorrection | None:
    """The correction that options ask for, None where it is not wanted; an option that is not given is None.

    Raises ValueError, naming the option, where one is given without it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given and not wanted:
        raise ValueError(f"--{next(iter(given))} belongs to --correction.")
    return FittedCorrection(**options) if wanted else None


Correction = IECConfig | AdamsConfig | FittedCorrection

#: The calibrated correction as it is by itself, and IEC's best case.
CALIBRATED = FittedCorrection()
FITTED_IEC = FittedCorrection(relaxation="fitted")


def correction_settings(correction: Correction | None, num_steps: int) -> dict[str, Any] | None:
    """What decides the numbers of a correction, as JSON values."""
    if isinstance(correction, FittedCorrection):
        return correction.to_dict()
    return recorded_correction(correction, num_steps)


def extra_evaluations(correction: Correction | None, num_steps: int, full_steps: frozenset[int]) -> int:
    """How many evaluations a correction adds at most, if no sample converges early."""
    if isinstance(correction, FittedCorrection) and correction.relaxation:
        return len(full_steps)
    if not isinstance(correction, IECConfig):
        return 0
    corrected = select_steps(correction.steps, num_steps)
    return correction.num_iterations * len(corrected if correction.cached_steps else corrected & full_steps)


def evaluates(correction: Correction | None) -> bool:
    """Whether it is IEC's, which evaluates again; the others change outputs that are made anyway."""
    if isinstance(correction, FittedCorrection):
        return correction.relaxation is not None
    return isinstance(correction, IECConfig)


def corrects(correction: Correction | None) -> bool:
    """Whether it is more than a refresh of the cache."""
    return correction is not None and (not isinstance(correction, IECConfig) or any(correction.relaxations))


def describe_correction(correction: Correction) -> str:
    """How a report names a correction."""
    if isinstance(correction, AdamsConfig):
        return "Adams" if correction.relaxation is None else f"Adams lambda={correction.relaxation:g}"
    if isinstance(correction, FittedCorrection):
        return _describe_fitted(correction)
    if not any(correction.relaxations):
        return "cache refresh only" + ("" if correction.steps == "all" else f" {correction.steps}")
    usual = correction.num_iterations == 1 and correction.relaxations == (0.5,)
    lambdas = "+".join(f"{value:g}" for value in correction.relaxations)
    return f"IEC {correction.steps}{'' if usual else f' K={correction.num_iterations} lambda={lambdas}'}"


def _describe_fitted(correction: FittedCorrection) -> str:
    if correction.relaxation:
        return "IEC fitted"
    named = {"m": correction.history, "bands": correction.bands, "b": correction.bias}
    chosen = [f"{name}={value:g}" for name, value in named.items() if value is not None]
    return " ".join(["calibrated", *chosen])
