"""`calibrate`: from a pipeline and settings to a plan that can be saved and applied."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient.applying import Plan, applied
from iec.efficient.cachequant.calibration import calibrate_cachequant
from iec.efficient.cachequant.config import CacheQuantConfig
from iec.efficient.caching.calibration import calibrate_deepcache
from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.checkpoint import Checkpoint
from iec.efficient.identity import identity_of
from iec.efficient.quantization.calibration import calibrate_quantization
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.trajectories import Trajectories
from iec.runtime import network_of, require_pipeline
from iec.runtime.sampler import Sampler


def calibrate(
    pipe: DiffusionPipeline,
    config: QuantizationConfig | CacheQuantConfig | DeepCacheConfig,
    num_steps: int,
    samples: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    checkpoint: str | Path | None = None,
) -> Plan:
    """The plan of `pipe` for runs of `num_steps` steps, from `samples` full-precision trajectories.

    seed, inputs: as of `Trajectories`. on_progress(done, total): called after every batch, in trajectories, and
    after every reconstructed unit.
    checkpoint: a folder of its own, into which the calibration writes about every 20 seconds what it has gathered, and
    from which the same call goes on, to the same plan byte for byte; it is deleted when the plan is complete.
    Raises ValueError or TypeError for settings or a pipeline that cannot be calibrated, or a checkpoint of
    another calibration, before anything is sampled.
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
    network, kept = network_of(pipe), None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, identity_of(pipe, config, trajectories, inputs or {}))
    plan: Plan
    if isinstance(config, DeepCacheConfig):
        plan = calibrate_deepcache(network, config, trajectories, on_progress, kept)
    elif isinstance(config, CacheQuantConfig):
        plan = calibrate_cachequant(network, config, trajectories, on_progress, kept)
    else:
        plan = calibrate_quantization(network, config, trajectories, on_progress, kept)
    if kept is not None:
        kept.finish()
    return replace(plan, sampler=Sampler.of(pipe.scheduler, num_steps))
