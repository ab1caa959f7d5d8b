"""`calibrate`: from a pipeline and settings to a plan that can be saved and applied."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient.applying import applied
from iec.efficient.quantization.calibration import record_trajectories
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.plan import QuantizationPlan
from iec.runtime import network_of, require_pipeline


def calibrate(
    pipe: DiffusionPipeline,
    config: QuantizationConfig,
    num_steps: int,
    samples: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizationPlan:
    """The plan of `pipe` for runs of `num_steps` steps, from `samples` full-precision trajectories.

    The arguments are those of `record_trajectories`. Raises ValueError or TypeError for settings or a pipeline that
    cannot be calibrated, before anything is sampled.
    """
    require_pipeline(pipe)
    if not isinstance(config, QuantizationConfig):
        raise TypeError(f"calibrate needs a QuantizationConfig, but got a {type(config).__name__}.")
    if applied(pipe) is not None:
        raise ValueError("Calibration needs the full model: remove what is applied to this pipeline first.")
    statistics = record_trajectories(pipe, config, num_steps, samples, batch_size, seed, inputs, on_progress)
    return QuantizationPlan.of(network_of(pipe), statistics)
