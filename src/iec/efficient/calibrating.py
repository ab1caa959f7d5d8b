"""`calibrate`: from a pipeline and settings to a plan that can be saved and applied."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient.applying import Plan, applied
from iec.efficient.cachequant.calibration import calibrate_cachequant
from iec.efficient.cachequant.config import CacheQuantConfig
from iec.efficient.caching.calibration import calibrate_deepcache
from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.quantization.calibration import calibrate_quantization
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.trajectories import Trajectories
from iec.runtime import network_of, require_pipeline


def calibrate(
    pipe: DiffusionPipeline,
    config: QuantizationConfig | CacheQuantConfig | DeepCacheConfig,
    num_steps: int,
    samples: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """The plan of `pipe` for runs of `num_steps` steps, from `samples` full-precision trajectories.

    seed, inputs: as of `Trajectories`. on_progress(done, total): called after every batch, in trajectories, and
    after every reconstructed unit.
    Raises ValueError or TypeError for settings or a pipeline that cannot be calibrated, before anything is sampled.
    """
    require_pipeline(pipe)
    if not isinstance(config, (QuantizationConfig, CacheQuantConfig, DeepCacheConfig)):
        raise TypeError(
            "calibrate needs a QuantizationConfig, CacheQuantConfig or DeepCacheConfig, "
            f"but got a {type(config).__name__}."
        )
    if applied(pipe) is not None:
        raise ValueError("Calibration needs the full model: remove what is applied to this pipeline first.")
    trajectories = Trajectories(pipe, num_steps, samples, batch_size, seed, inputs)
    network = network_of(pipe)
    if isinstance(config, DeepCacheConfig):
        return calibrate_deepcache(network, config, trajectories, on_progress)
    if isinstance(config, CacheQuantConfig):
        return calibrate_cachequant(network, config, trajectories, on_progress)
    return calibrate_quantization(network, config, trajectories, on_progress=on_progress)
