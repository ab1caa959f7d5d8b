"""Calibration of the activations over full-precision trajectories, counted as they pass (spec 4.3).

Unlike the released code, which holds the inputs of every step and quantizes layer after layer, every layer is
calibrated on its full-precision input, so that one pass over the trajectories is enough and nothing is held.
"""

from collections.abc import Callable

from torch import nn

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
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
