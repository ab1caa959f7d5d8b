"""Correction on any diffusers pipeline: the loop body between two scheduler steps is recorded and replayed."""

from iec.pipelines.correction_plan import CorrectionPlan
from iec.pipelines.enabling import disable, enable, enabled, summary
from iec.pipelines.errors import IECUnsupportedError
from iec.pipelines.step_coefficients import StepCoefficients, step_coefficients

__all__ = [
    "CorrectionPlan",
    "IECUnsupportedError",
    "StepCoefficients",
    "disable",
    "enable",
    "enabled",
    "step_coefficients",
    "summary",
]
