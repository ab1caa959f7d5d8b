"""Recording what a pipeline does between two `scheduler.step` calls.

The few torch functions around the network (the glue) are recorded one by one; each network component is one opaque
evaluation, inside which nothing is recorded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily


class _Call:
    """What both kinds of events are: a call, whose tensors are looked for once."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @cached_property
    def given(self) -> list[torch.Tensor]:
        """The tensors among its arguments."""
        return tensors_in((self.args, self.kwargs))

    @cached_property
    def made(self) -> list[torch.Tensor]:
        """The tensors of its output."""
        return tensors_in(self.output)


@dataclass(frozen=True, eq=False)
class Operation(_Call):
    """One torch function that the pipeline called."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @cached_property
    def overwritten(self) -> torch.Tensor | None:
        """The tensor that the function wrote into, if it is one that writes in place."""
        return overwritten_by(self.function, self.args, self.kwargs)


@dataclass(frozen=True, eq=False)
class Evaluation(_Call):
    """One call of a network component; `call` is the component without the recording hook.

    inputs, outputs: its tensors with the values that they had at the call. They are the tensors of `args`, `kwargs`
    and `output` themselves, unless the pipeline later overwrote one of those in place.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]

    def keep_from(self, written: torch.Tensor) -> None:
        """Copy what shares memory with `written`, which is about to be overwritten."""
        place = written.untyped_storage().data_ptr()
        for values in (self.inputs, self.outputs):
            for i, tensor in enumerate(values):
                if tensor.untyped_storage().data_ptr() == place:
                    values[i] = tensor.clone()


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
        written = overwritten_by(func, args, kwargs)
        if written is not None:
            for event in self.events:
                if isinstance(event, Evaluation):
                    event.keep_from(written)
        output = func(*args, **kwargs)
        if written is not None or tensors_in(output):
            self.events.append(Operation(func, args, kwargs, output))
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
        glue.events.append(Evaluation(call, args, kwargs, output, tensors_in((args, kwargs)), tensors_in(output)))
        return output


def overwritten_by(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The tensor that a torch function writes into: its `out`, or its first argument where it works in place."""
    name = getattr(function, "__name__", "")
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    written = kwargs.get("out", args[0] if in_place and args else None)
    return written if isinstance(written, torch.Tensor) else None


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of nested lists, tuples and dicts (a diffusers output is a dict), in order."""
    found: list[torch.Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)
