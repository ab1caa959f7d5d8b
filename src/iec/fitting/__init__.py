"""A calibrated correction: fitted in closed form to a reference trajectory, over the runs of a pipeline."""

from iec.fitting.calibrate import calibrate_correction

__all__ = ["calibrate_correction"]
