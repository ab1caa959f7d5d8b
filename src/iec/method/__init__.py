"""The paper in code: torch and the standard library only."""

from iec.method.adams import AdamsConfig
from iec.method.calibrated import StepCoefficients
from iec.method.clock import Clock, current_clock
from iec.method.config import IECConfig
from iec.method.correction import Correction, correct
from iec.method.ddim import Coefficients, alphas_cumprod_linear, coefficients, spaced_timesteps
from iec.method.errors import NonFiniteError
from iec.method.noise import image_generator, initial_noise
from iec.method.output_corrector import OutputChange, OutputCorrector
from iec.method.sampler import sample
from iec.method.summary import Summary

__all__ = [
    "AdamsConfig",
    "Clock",
    "Coefficients",
    "Correction",
    "IECConfig",
    "NonFiniteError",
    "OutputChange",
    "OutputCorrector",
    "StepCoefficients",
    "Summary",
    "alphas_cumprod_linear",
    "coefficients",
    "correct",
    "current_clock",
    "image_generator",
    "initial_noise",
    "sample",
    "spaced_timesteps",
]
