"""What calibration gathers, in a form that can be stored between two batches of trajectories and taken up again."""

from collections.abc import Mapping
from typing import Protocol

import torch

State = Mapping[str, torch.Tensor]


class Accumulator(Protocol):
    """Something that gathers from trajectories, and is complete in itself after every batch of them."""

    def state(self) -> State:
        """All that was gathered, exactly, as named tensors; they may change with the next batch."""

    def load(self, state: State) -> None:
        """Become what gave `state`. Raises KeyError where a tensor is missing."""


class Stepwise(Accumulator, Protocol):
    """Something that gathers one step of all trajectories after the other, and is complete in itself after each."""

    def meet(self) -> float:
        """All trajectories have given their part of a step: the share of the run that is done with it."""


def joined(states: Mapping[str, State]) -> dict[str, torch.Tensor]:
    """Several states as one."""
    return {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}


def part_of(state: State, part: str) -> dict[str, torch.Tensor]:
    """The state that `joined` put under the name `part`."""
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
