"""Calibration samples of mixed steps: what a network is given, row by row, along full-precision trajectories."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.reconstruction.rows import join, map_rows, take
from iec.efficient.trajectories import Trajectories
from iec.method.clock import current_clock

#: Called at every evaluation that is sampled from, before it takes place: (step, the rows that are taken).
OnRows = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class Samples:
    """N evaluations of a network: steps, int64 [N], and its call's arguments by name, with N rows."""

    steps: torch.Tensor
    inputs: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.steps)

    def batches(self, size: int) -> list[slice]:
        """All samples in their order, `size` at a time."""
        return [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]


def collect_samples(
    network: nn.Module,
    trajectories: Trajectories,
    num_steps: int,
    count: int,
    full_steps: Sequence[int] = (),
    on_rows: OnRows = lambda step, rows: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Samples:
    """`count` random pairs of a trajectory and a step, each at most once; all pairs where there are fewer.

    full_steps: of a cache; they are twice as likely (spec 4.3). Where an evaluation has several rows per trajectory, as
    of classifier-free guidance, one is taken at random.
    """
    collector = _Collector(network, trajectories, num_steps, count, full_steps, on_rows)
    handle = network.register_forward_pre_hook(collector.add, with_kwargs=True)
    try:
        trajectories.run(lambda done, total: collector.batch_ends(done, lambda: on_progress(done, total)))
    finally:
        handle.remove()
    return collector.samples()


class _Collector:
    def __init__(
        self,
        network: nn.Module,
        trajectories: Trajectories,
        num_steps: int,
        count: int,
        full_steps: Sequence[int],
        on_rows: OnRows,
    ) -> None:
        self.trajectories, self.on_rows, self.start = trajectories, on_rows, 0
        self.signature = inspect.signature(type(network).forward)
        generator = torch.Generator().manual_seed(trajectories.seed)
        weights = torch.ones(trajectories.samples, num_steps, dtype=torch.float64)
        weights[:, list(full_steps)] *= 2
        # The largest keys w / e with e ~ Exp(1) are a draw without replacement, with these weights.
        keys = (weights / torch.empty_like(weights).exponential_(generator=generator)).flatten()
        chosen = torch.zeros(len(keys), dtype=torch.bool)
        chosen[keys.topk(min(count, len(keys))).indices] = True
        self.chosen = chosen.view_as(weights)
        self.place = torch.rand(weights.shape, generator=generator, dtype=torch.float64)
        self.steps: list[torch.Tensor] = []
        self.inputs: list[dict[str, Any]] = []

    def batch_ends(self, done: int, then: Callable[[], None]) -> None:
        self.start = done
        then()

    def add(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clock = current_clock()
        if clock.pass_index:
            return
        size = min(self.trajectories.batch_size, self.trajectories.samples - self.start)
        own = slice(self.start, self.start + size)
        (indices,) = self.chosen[own, clock.step].nonzero(as_tuple=True)
        if not len(indices):
            return
        arguments = self.signature.bind(network, *args, **kwargs).arguments
        given = dict(list(arguments.items())[1:])
        given.update(given.pop("kwargs", {}))
        first = next(value for value in given.values() if isinstance(value, torch.Tensor))
        repeats = len(first) // size
        rows = indices + size * (self.place[own, clock.step][indices] * repeats).long()
        timestep = torch.as_tensor(given["timestep"], device=first.device)
        given["timestep"] = timestep.expand(len(first))
        given.pop("return_dict", None)
        self.on_rows(clock.step, rows)
        taken = take(given, len(first), rows.to(first.device))
        self.inputs.append(map_rows(taken, len(rows), lambda x: x.detach().float() if x.is_floating_point() else x))
        self.steps.append(torch.full((len(rows),), clock.step))

    def samples(self) -> Samples:
        steps = torch.cat(self.steps)
        inputs: dict[str, Any] = join(self.inputs, [len(own) for own in self.steps])
        device = next(value for value in inputs.values() if isinstance(value, torch.Tensor)).device
        return Samples(steps.to(device), inputs)
