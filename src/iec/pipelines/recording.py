"""Recording what a pipeline does between two `scheduler.step` calls.

The few torch functions around the network (the glue) are recorded one by one; each network component is one opaque
evaluation, inside which nothing is recorded.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily


@dataclass(frozen=True, eq=False)
class Operation:
    """One torch function that the pipeline called."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def writes_in_place(self) -> bool:
        """Whether the function overwrites its first argument."""
        name = getattr(self.function, "__name__", "")
        return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One call of a network component; `call` is the component without the recording hook."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


Event = Operation | Evaluation

_IN_PLACE = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"})


class _Glue(TorchFunctionMode):
    """Appends every torch function that yields or overwrites a tensor to `events`."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self.events = events

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        operation = Operation(func, args, kwargs, output)
        if operation.writes_in_place or next(tensors_in(output), None) is not None:
            self.events.append(operation)
        return output


class Recorder:
    """Records while started; `stop` hands the events over."""

    def __init__(self) -> None:
        self._glue: _Glue | None = None

    @property
    def recording(self) -> bool:
        """Whether events are being recorded."""
        return self._glue is not None

    def start(self) -> None:
        """Begin a fresh recording, dropping an unfinished one."""
        self.stop()
        self._glue = _Glue([])
        self._glue.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> list[Event]:
        """End the recording and return its events."""
        glue, self._glue = self._glue, None
        if glue is None:
            return []
        glue.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return glue.events

    def evaluate(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a network component, as one event."""
        glue = self._glue
        if glue is None:
            return call(*args, **kwargs)
        self._glue = None  # a component inside this one is part of this event
        try:
            with _pop_mode_temporarily():
                output = call(*args, **kwargs)
        finally:
            self._glue = glue
        glue.events.append(Evaluation(call, args, kwargs, output))
        return output


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of nested lists, tuples and mappings (a diffusers output is a mapping), in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
