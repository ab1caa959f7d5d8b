"""Histograms of what a network's layers and attentions are given, streamed while it runs: one per step or group."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from iec.efficient.accumulators import State, joined, part_of
from iec.efficient.quantization.activations import count_groups
from iec.efficient.quantization.attention import OPERANDS, OperandProcessor
from iec.efficient.quantization.bias import ChannelMeans
from iec.efficient.quantization.coverage import Coverage, LayerTarget
from iec.efficient.quantization.histogram import Histogram
from iec.efficient.quantization.network import set_processor
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.ranges import search_histogram
from iec.method.clock import current_clock


class ActivationStatistics:
    """The activations of every quantizer of `covered`, by its key and group of steps.

    num_steps: of the runs; None before the first. histograms: by key, one per group, from when the key is first seen.
    means: by key, of the inputs of layers, where the bias is to be corrected.
    The memory does not depend on how many runs are recorded: 16 KiB per key and group.
    """

    def __init__(self, covered: Coverage) -> None:
        self.covered = covered
        self.num_steps: int | None = None
        self.histograms: dict[str, list[Histogram]] = {}
        self.means: dict[str, ChannelMeans] = {}
        corrected = covered.layers if covered.config.bias_correction else ()
        self._axes = {key: layer.channel_axis for layer in corrected for key in layer.keys}

    def add(self, key: str, values: torch.Tensor) -> None:
        """Count `values` for the current step; correction passes are left out.

        Raises ValueError in a run of another length, or where a value is infinite or NaN.
        """
        clock = current_clock()
        if self.num_steps not in (None, clock.num_steps):
            raise ValueError(f"A run of {clock.num_steps} steps cannot be recorded with runs of {self.num_steps}.")
        if clock.pass_index:
            return
        self.num_steps, step = clock.num_steps, clock.step
        if key not in self.histograms:
            self.histograms[key] = self._empty_row()
        group = step // self.covered.config.steps_per_group
        try:
            self.histograms[key][group].add(values)
        except ValueError as error:
            raise ValueError(f"At step {step}, the input of '{key}' became infinite or NaN.") from error
        if key in self._axes:
            axis = self._axes[key]
            if key not in self.means:
                self.means[key] = ChannelMeans(len(self.histograms[key]), values.shape[axis])
            self.means[key].add(group, values, axis)

    def grids(self) -> dict[str, Grid]:
        """The grids of every key that was seen, delta and zero_point [groups].

        Raises ValueError where nothing was recorded at all, or a layer ran at some steps and not at others.
        """
        if not self.histograms:
            raise ValueError("There is no calibration data: record at least one run.")
        # In the order of the network, not of its runs, so that the plan's bytes do not depend on an interruption.
        bits = self.covered.bits_of_activations()
        return {key: self._grid(key, self.histograms[key], bits[key]) for key in bits if key in self.histograms}

    def state(self) -> State:
        """All that was counted."""
        rows = {}
        for key, row in self.histograms.items():
            states = [histogram.state() for histogram in row]
            rows[key] = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        means = {f"{key}/means": own.state() for key, own in self.means.items()}
        return {"num_steps": torch.tensor(self.num_steps or 0), **joined(rows), **joined(means)}

    def load(self, state: State) -> None:
        """Become what gave `state`."""
        self.num_steps = int(state["num_steps"]) or None
        for key in self.covered.bits_of_activations():
            rows = part_of(state, key)
            if rows:
                self.histograms[key] = self._empty_row()
                for group, histogram in enumerate(self.histograms[key]):
                    histogram.load({name: rows[name][group] for name in histogram.state()})
            means = part_of(state, f"{key}/means")
            if means:
                self.means[key] = ChannelMeans(*means["sums"].shape)
                self.means[key].load(means)

    def _empty_row(self) -> list[Histogram]:
        assert self.num_steps is not None
        return [Histogram() for _ in range(count_groups(self.num_steps, self.covered.config.steps_per_group))]

    def _grid(self, key: str, row: list[Histogram], bits: int) -> Grid:
        for group, histogram in enumerate(row):
            if not histogram.total:
                first = group * self.covered.config.steps_per_group
                raise ValueError(f"'{key}' was not run at step {first}: calibrate the full model, without a cache.")
        found = [search_histogram(histogram, bits) for histogram in row]
        return Grid(torch.stack([g.delta for g in found]), torch.stack([g.zero_point for g in found]), bits)


@contextmanager
def recording(network: nn.Module, covered: Coverage, add: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """While entered, all that the covered quantizers of `network` would be given goes to `add(key, values)`.

    The network's own results stay what they are.
    """
    with ExitStack() as stack:
        for target in covered.layers:
            hook = _hook(add, target)
            stack.callback(network.get_submodule(target.name).register_forward_pre_hook(hook).remove)
        for name in covered.attentions:
            attention: Any = network.get_submodule(name)
            stack.callback(set_processor, attention, attention.processor)
            operands = {operand: _Recorder(add, f"{name}:{operand}") for operand in OPERANDS}
            set_processor(attention, OperandProcessor(operands, attention.processor))
        yield


class _Recorder(nn.Module):
    """Hands on what passes through it."""

    def __init__(self, add: Callable[[str, torch.Tensor], None], key: str) -> None:
        super().__init__()
        self.add, self.key = add, key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.add(self.key, x)
        return x


def _hook(add: Callable[[str, torch.Tensor], None], target: LayerTarget) -> Any:
    def hook(layer: Any, args: tuple[torch.Tensor, ...]) -> None:
        if len(target.keys) == 1:
            add(target.keys[0], args[0])
            return
        parts = torch.split(args[0], list(target.widths), 1 - layer.weight.dim())
        for key, part in zip(target.keys, parts, strict=True):
            add(key, part)

    return hook
