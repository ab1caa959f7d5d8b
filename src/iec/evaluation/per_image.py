"""Inputs of a pipeline's call that differ between images: how a batch gets its own, and how a record tells them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iec.storage.fingerprint import texts_digest

#: Up to here a record writes a list out; of a longer one it keeps the length and a digest.
_WRITTEN_OUT = 20


@dataclass(frozen=True)
class PerImage:
    """An input with the value `of(i)` for image i; `name` says in a record all that decides those values."""

    name: str
    of: Callable[[int], Any]

    def first(self, count: int) -> list[Any]:
        """The values of the first `count` images."""
        return [self.of(i) for i in range(count)]


def of_batch(inputs: Mapping[str, Any], indices: range) -> dict[str, Any]:
    """The inputs of the call for the images `indices`: of a list image i takes entry i, in turn; a prompt is repeated.

    Everything else is passed as it is.
    """
    return {name: _of_batch(name, value, indices) for name, value in inputs.items()}


def recorded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of the inputs, as JSON values: the same only for the same inputs."""
    return {name: _recorded(name, value) for name, value in inputs.items()}


def listed(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The inputs with the first `count` values in the place of every `PerImage`, for whoever takes lists only."""
    return {name: value.first(count) if isinstance(value, PerImage) else value for name, value in inputs.items()}


def _of_batch(name: str, value: Any, indices: range) -> Any:
    if isinstance(value, PerImage):
        return [value.of(i) for i in indices]
    if name == "prompt" and isinstance(value, str):
        return [value] * len(indices)
    return [value[i % len(value)] for i in indices] if isinstance(value, list) else value


def _recorded(name: str, value: Any) -> Any:
    if isinstance(value, PerImage):
        return value.name
    if isinstance(value, list) and (name == "prompt" or len(value) > _WRITTEN_OUT):
        return f"{len(value)} {'prompts' if name == 'prompt' else 'values'}, {texts_digest(map(str, value))}"
    return value
