"""The random state around a scheduler step, so that every pass of a step draws the same noise."""

from collections.abc import Iterable
from typing import Any

import torch


class NoiseState:
    """The states of all generators among `arguments` (lists too) and of torch's global generators, to be put back."""

    def __init__(self, arguments: Iterable[Any]) -> None:
        self._own = [(generator, generator.get_state()) for generator in _generators(arguments)]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        """Put every state back."""
        for generator, state in self._own:
            generator.set_state(state)
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def _generators(arguments: Iterable[Any]) -> Iterable[torch.Generator]:
    for argument in arguments:
        if isinstance(argument, torch.Generator):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _generators(argument)
        elif isinstance(argument, dict):
            yield from _generators(argument.values())
