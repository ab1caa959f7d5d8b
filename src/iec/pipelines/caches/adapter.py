"""What all adapters of third-party caches share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch

from iec.method.clock import Clock
from iec.pipelines.caches.state import copied, mixed
from iec.runtime.hooks import Handler

Call = Callable[..., Any]
Place = tuple[Any, str]


class CacheAdapter(ABC):
    """One third-party cache of one network behind the protocol of `iec.method.cache`; entered for the length of a run.

    It tells the clock after each evaluation whether that was full, from what ran.
    places: the attributes (of which object, its name) in which the cache keeps its state.
    """

    has_history = True

    def __init__(self, places: Sequence[Place], clock: Clock) -> None:
        self.places, self.clock = places, clock
        self._stack = ExitStack()

    @abstractmethod
    def forced_full(self) -> AbstractContextManager[None]:
        """While entered, the cache computes every evaluation in full, and stores its features."""

    def installed(self) -> Iterable[AbstractContextManager[Any]]:
        """What is in place for the length of a run."""
        return ()

    def bound(self, call: Call) -> Call:
        """A call of the network as it can be made again later: with what surrounds it now."""
        return call

    def snapshot(self) -> list[Any]:
        """The cache's state; tensors by reference, since these caches replace them."""
        return [copied(getattr(*place)) for place in self.places]

    def restore(self, state: list[Any], samples: torch.Tensor | None = None) -> None:
        """Put `state` back: all of it, or only the rows of `samples` (bool [B])."""
        for place, old in zip(self.places, state, strict=True):
            setattr(*place, copied(old) if samples is None else self.mix(getattr(*place), old, samples))

    def mix(self, new: Any, old: Any, samples: torch.Tensor) -> Any:
        """The state of one place with the rows of `samples` (bool [B]) from `old`."""
        return mixed(new, old, samples)

    def was_full(self) -> bool | None:
        """Whether the latest evaluation was computed in full; None where the cache had no say."""
        return self.clock.full

    def __enter__(self) -> "CacheAdapter":
        with ExitStack() as stack:
            for installed in self.installed():
                stack.enter_context(installed)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()


@contextmanager
def replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    """While entered, `owner` has these attributes of its own in the place of those that it had."""
    entries = vars(owner)
    before = {name: entries[name] for name in attributes if name in entries}
    entries.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del entries[name]
        entries.update(before)


class Surrounding(Protocol):
    """What surrounds the calls of a network: the contexts of caches, the hooks of guiders."""

    def bound(self, call: Call) -> Call:
        """The call with what surrounds it now."""


def bound_to(surroundings: Sequence[Surrounding], handler: Handler | None = None) -> Handler:
    """`handler` (None: the call itself) for a network whose calls are bound to what surrounds them."""

    def handle(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for surrounding in surroundings:
            call = surrounding.bound(call)
        return call(*args, **kwargs) if handler is None else handler(call, args, kwargs)

    return handle
