"""A calibrated correction: fitted in closed form to a reference trajectory, over the runs of a pipeline."""

from iec.fitting.calibrate import FitConfig, calibrate_correction, require_fit

__all__ = ["FitConfig", "calibrate_correction", "require_fit"]
