"""Bias correction: what rounding the weights adds to a layer's outputs on average, taken off again at every step.

Q(W) x differs from W x by (Q(W) - W) x, whose mean over inputs is not zero where theirs is not: after a SiLU, for one.
The mean input per channel is all that is needed (Nagel et al. 2019, arXiv 1906.04721, section 4.2); at the borders of
a picture, where a convolution sees padding, it is an approximation.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from iec.efficient.accumulators import State
from iec.efficient.quantization.coverage import Coverage
from iec.efficient.quantization.quantizer import Grid, fake_quantize


class ChannelMeans:
    """The mean of every channel of what streams by, per group of steps: `means` float64 [groups, C]."""

    def __init__(self, groups: int, channels: int) -> None:
        self.sums = torch.zeros(groups, channels, dtype=torch.float64)
        self.counts = torch.zeros(groups, dtype=torch.int64)

    def add(self, group: int, values: torch.Tensor, axis: int) -> None:
        """Count `values`, whose channels lie along `axis`."""
        by_channel = values.detach().movedim(axis, 0).flatten(1)
        self.sums[group] += by_channel.sum(1, dtype=torch.float64).cpu()
        self.counts[group] += by_channel.shape[1]

    @property
    def means(self) -> torch.Tensor:
        """The means; 0 of a group that saw nothing."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(1)

    def state(self) -> State:
        """All that was counted."""
        return {"sums": self.sums, "counts": self.counts}

    def load(self, state: State) -> None:
        """Become what gave `state`."""
        self.sums, self.counts = state["sums"], state["counts"]


def bias_shifts(
    network: nn.Module,
    covered: Coverage,
    weight_grids: Mapping[str, Sequence[Grid]],
    means: Mapping[str, ChannelMeans],
    without_first: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """What to add to the outputs of every layer whose inputs were seen, float32 [groups, O], by its name.

    means: by the keys of activations. without_first: split layers whose first part is corrected otherwise.
    """
    shifts = {}
    for target in covered.layers:
        if any(key not in means for key in target.keys):
            continue
        layer: Any = network.get_submodule(target.name)
        parts = torch.split(layer.weight.detach().float(), list(target.widths), 1)
        groups = getattr(layer, "groups", 1)
        shift: torch.Tensor | float = 0.0
        for index, (key, part, grid) in enumerate(zip(target.keys, parts, weight_grids[target.name], strict=True)):
            if index or target.name not in without_first:
                shift = shift - _mean_error(part, grid, means[key].means, groups)
        if isinstance(shift, torch.Tensor):
            shifts[target.name] = shift.float()
    return shifts


def _mean_error(weight: torch.Tensor, grid: Grid, means: torch.Tensor, groups: int) -> torch.Tensor:
    """(Q(W) - W) E[x], float64 [steps, O], for a weight [O, I / groups, ...] and means [steps, I]."""
    error = (fake_quantize(weight, grid) - weight).double().view(*weight.shape[:2], -1).sum(2)
    by_group = error.view(groups, -1, error.shape[1]).to(means.device)
    return torch.einsum("tgi,goi->tgo", means.view(len(means), groups, -1), by_group).flatten(1)
