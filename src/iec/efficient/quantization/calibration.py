"""Calibration of the activations over full-precision trajectories, counted as they pass (spec 4.3).

Unlike the released code, which holds the inputs of every step and quantizes layer after layer, every layer is
calibrated on its full-precision input, so that one pass over the trajectories is enough and nothing is held.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.reconstruction.reconstruct import count_units, reconstruct
from iec.efficient.quantization.reconstruction.samples import collect_samples
from iec.efficient.quantization.statistics import ActivationStatistics, recording
from iec.efficient.trajectories import Trajectories


def record_trajectories(
    network: nn.Module,
    config: QuantizationConfig,
    trajectories: Trajectories,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ActivationStatistics:
    """The activations of `network` over trajectories of its pipeline; `on_progress(done, total)` counts them.

    Raises ValueError or TypeError for a network that cannot be calibrated, before anything is sampled.
    """
    statistics = ActivationStatistics(coverage(network, config))
    with recording(network, statistics.covered, statistics.add):
        trajectories.run(on_progress)
    return statistics


def calibrate_quantization(
    network: nn.Module,
    config: QuantizationConfig,
    trajectories: Trajectories,
    folder: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizationPlan:
    """The plan of `network` over trajectories of its pipeline, reconstructed where `config` says so.

    folder: of `reconstruct`. on_progress(done, total) counts the trajectories of all stages and the units.
    Raises ValueError or TypeError for a network that cannot be calibrated, before anything is sampled.
    """
    count = trajectories.samples
    if config.reconstruction is None:
        return QuantizationPlan.of(network, record_trajectories(network, config, trajectories, on_progress))
    units = count_units(network, config)
    total = 2 * count + units
    statistics = record_trajectories(network, config, trajectories, lambda done, _: on_progress(done, total))
    plan = QuantizationPlan.of(network, statistics)
    samples = collect_samples(
        network,
        trajectories,
        plan.num_steps,
        config.reconstruction.samples,
        on_progress=lambda done, _: on_progress(count + done, total),
    )
    return reconstruct(network, plan, samples, None, folder, lambda left: on_progress(total - left, total))
