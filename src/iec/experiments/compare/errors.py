"""The error of the state after every sampling step, without and with correction."""

from dataclasses import replace
from pathlib import Path

from iec.evaluation.bootstrap import Estimate
from iec.evaluation.metrics.latent import latent_error_estimates
from iec.experiments.compare.request import Request
from iec.experiments.figures.latents import LatentErrors
from iec.experiments.measuring import Measurements
from iec.experiments.settings import Setting
from iec.experiments.tables import ExperimentTable


def error_settings(request: Request) -> list[Setting]:
    """What is followed: the model without and with each corrector, and full precision with each as a control."""
    if request.technique is None:
        return list(request.corrected)
    controls = [replace(setting, technique=None) for setting in request.corrected]
    return [request.plain, *request.corrected, *controls]


def measured_errors(
    request: Request, measurements: Measurements, folder: Path
) -> tuple[tuple[Setting, tuple[Estimate, ...]], ...]:
    """The mean squared error of each at every step, against full precision without correction at the same seeds."""
    errors = LatentErrors(_table(request), folder, measurements)
    return tuple((s, tuple(latent_error_estimates(errors.row(s)))) for s in error_settings(request))


def _table(request: Request) -> ExperimentTable:
    return ExperimentTable(
        name="compare",
        title="",
        num_steps=request.num_steps,
        spacing=request.spacing,
        corrections=(),
        systems=(),
        images=request.error_images,
        seed=request.seed,
        dtype=request.dtype,
        batch_size=request.batch_size,
        calibration=request.calibration,
        device=request.device,
    )
