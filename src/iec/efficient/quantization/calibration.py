"""Calibration of the activations over full-precision trajectories, counted as they pass (spec 4.3).

Unlike the released code, which holds the inputs of every step and quantizes layer after layer, every layer is
calibrated on its full-precision input, so that one pass over the trajectories is enough and nothing is held.
"""

from torch import nn

from iec.efficient.checkpoint import Checkpoint
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.reconstruction.reconstruct import count_units, reconstruct
from iec.efficient.quantization.reconstruction.samples import collect_samples
from iec.efficient.quantization.statistics import ActivationStatistics, recording
from iec.efficient.stages import Progress, Stages
from iec.efficient.trajectories import Trajectories


def record_trajectories(network: nn.Module, config: QuantizationConfig, stages: Stages) -> ActivationStatistics:
    """The activations of `network` over trajectories of its pipeline, in the next of the stages.

    Raises ValueError or TypeError for a network that cannot be calibrated, before anything is sampled.
    """
    statistics = ActivationStatistics(coverage(network, config))
    with recording(network, statistics.covered, statistics.add):
        stages.run("activations", statistics)
    return statistics


def calibrate_quantization(
    network: nn.Module,
    config: QuantizationConfig,
    trajectories: Trajectories,
    on_progress: Progress = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
) -> QuantizationPlan:
    """The plan of `network` over trajectories of its pipeline, reconstructed where `config` says so.

    on_progress(done, total) counts the trajectories of all stages and the units.
    Raises ValueError or TypeError for a network that cannot be calibrated, before anything is sampled.
    """
    reconstruction = config.reconstruction
    units = 0 if reconstruction is None else count_units(network, config)
    stages = Stages(trajectories, 1 if reconstruction is None else 2, on_progress, checkpoint, units)
    plan = QuantizationPlan.of(network, record_trajectories(network, config, stages))
    if reconstruction is None:
        return plan
    samples = collect_samples(
        network, trajectories, plan.num_steps, reconstruction.samples, on_progress=stages.next_stage()
    )
    return reconstruct(network, plan, samples, None, stages.folder("reconstruction"), stages.units_left)
