"""DEC: what caching (spec 3.2) and quantization (3.3) lose, corrected per channel by an affine map."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from iec.efficient.accumulators import State
from iec.efficient.cachequant.held import HeldFeatures
from iec.efficient.cachequant.regression import ChannelRegression, load_regressions, regressions_state
from iec.efficient.caching.memory import LATEST, Memory
from iec.efficient.quantization.layers import QuantizedLayer
from iec.method.clock import current_clock


class CacheCorrection:
    """Fits feature_i ~ a_i feature_c + b_i, where c is the full step whose feature step i reuses.

    The features of full-precision runs without a cache stream by; only those that `memory` keeps are held, and what it
    forecasts takes the place of feature_c.
    Raises ValueError where the full steps are not sorted or do not begin with 0.
    """

    def __init__(self, num_steps: int, full_steps: Sequence[int], memory: Memory = LATEST) -> None:
        if not full_steps or full_steps[0] != 0 or sorted(set(full_steps)) != list(full_steps):
            raise ValueError(f"The full steps must be sorted and begin with 0, but are {list(full_steps)}.")
        self.num_steps = num_steps
        self.full_steps = frozenset(full_steps)
        self.fits = [ChannelRegression() for _ in range(num_steps)]
        self._channels = 0
        self._held = HeldFeatures(self.full_steps, memory)

    def add(self, step: int, feature: torch.Tensor) -> None:
        """Count the feature of `step` [B, C, ...]; of every batch, the steps come in order."""
        self._channels = feature.shape[1]
        used = self._held.used(step, feature.detach())
        if step not in self.full_steps:
            self.fits[step].add(used, feature)

    def state(self) -> State:
        """All that was counted."""
        return {"channels": torch.tensor(self._channels), **regressions_state(self.fits)}

    def load(self, state: State) -> None:
        """Become what gave `state`."""
        self._channels = int(state["channels"])
        load_regressions(self.fits, state)

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a and b, float32 [T, C]; 1 and 0 at the full steps. Raises ValueError where a step was not seen."""
        a, b = torch.ones(self.num_steps, self._channels), torch.zeros(self.num_steps, self._channels)
        for step, fit in enumerate(self.fits):
            if step not in self.full_steps:
                a[step], b[step] = fit.solve()
        return a, b


class QuantizationCorrection:
    """Fits, for a split layer, the float output of its first part to the quantized one: Y ~ a2 Z + b2, at every step.

    Y and Z are computed without the bias, which the layer adds once (D9).
    weight: the float weight of the layer's first part. Raises ValueError where the layer is not split.
    """

    def __init__(self, layer: QuantizedLayer, weight: torch.Tensor, num_steps: int) -> None:
        if len(layer.widths) != 2:
            raise ValueError("Only a layer that is split has a part to correct.")
        self.layer, self.weight = layer, weight.detach()
        self.fits = [ChannelRegression() for _ in range(num_steps)]

    def add(self, main: torch.Tensor) -> None:
        """Count the layer's main input [B, C0, ...] (cached and cache-corrected as in use), at the run's step."""
        with torch.no_grad():
            exact = self.layer.operation(main, self.weight, None)
            quantized_weight = self.layer.weight(main.dtype)[:, : self.layer.widths[0]]
            quantized = self.layer.operation(self.layer.inputs[0](main), quantized_weight, None)
        if self.weight.dim() == 2:  # a linear layer has its channels last
            exact, quantized = exact.movedim(-1, 1), quantized.movedim(-1, 1)
        self.fits[current_clock().step].add(quantized, exact)

    def state(self) -> State:
        """All that was counted."""
        return regressions_state(self.fits)

    def load(self, state: State) -> None:
        """Become what gave `state`."""
        load_regressions(self.fits, state)

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a2 and b2, [T, O], for `QuantizedLayer.set_correction`. Raises ValueError where a step was not seen."""
        solved = [fit.solve() for fit in self.fits]
        return torch.stack([a for a, _ in solved]), torch.stack([b for _, b in solved])


def normalized_main(norm: nn.GroupNorm, main: torch.Tensor) -> torch.Tensor:
    """The first channels of `norm` applied to a concatenation, from the main branch [B, C0, ...] alone.

    Raises ValueError where a group holds channels of both branches: it then needs the other branch too.
    """
    per_group, width = norm.num_channels // norm.num_groups, main.shape[1]
    if width % per_group:
        raise ValueError(f"Groups of {per_group} channels straddle the main branch of {width}.")
    weight, bias = (None if values is None else values[:width] for values in (norm.weight, norm.bias))
    return functional.group_norm(main, width // per_group, weight, bias, norm.eps)
