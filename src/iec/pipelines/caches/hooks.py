"""The caches that diffusers keeps in hooks of a network's modules, with one base for all of them."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from diffusers.hooks.hooks import StateManager

from iec.method.clock import Clock
from iec.pipelines.caches.adapter import CacheAdapter, Call, replaced
from iec.pipelines.recording import tensors_in


class HookCache(CacheAdapter):
    """A cache of diffusers' hooks; a subclass names them and says what makes each compute in full."""

    #: Their names in diffusers' hook registries.
    names: ClassVar[tuple[str, ...]]

    def __init__(self, hooks: Sequence[Any], clock: Clock) -> None:
        managers = [value for hook in hooks for value in vars(hook).values() if isinstance(value, StateManager)]
        self.hooks, self.managers = hooks, list(dict.fromkeys(managers))
        own = [(hook, "state") for hook in hooks if "state" in vars(hook)]
        super().__init__([*own, *((manager, "_state_cache") for manager in self.managers)], clock)

    @abstractmethod
    def full_settings(self, hook: Any) -> Mapping[str, Any]:
        """The attributes with which `hook` decides for a full evaluation."""

    @contextmanager
    def forced_full(self) -> Iterator[None]:
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(replaced(hook, self.full_settings(hook)))
            yield

    def bound(self, call: Call) -> Call:
        """The call in the cache contexts of now (`cond`, `uncond`, ...), which are closed when the step is taken."""
        contexts = [(manager, manager._context) for manager in self.managers]

        def in_context(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                for manager, context in contexts:
                    stack.enter_context(replaced(manager, {"_context": context}))
                return call(*args, **kwargs)

        return in_context

    def installed(self) -> Iterable[AbstractContextManager[Any]]:
        for hook in self.hooks:
            # A hook calls what it stands before through a reference of its own; diffusers removes hooks through
            # another, so one that is removed during the run takes nothing of ours with it.
            if hook.fn_ref.original_forward is not None:
                watch = _Watch(hook.fn_ref, self.clock)
                yield replaced(hook.fn_ref, {"forward": watch.forward})
                yield replaced(hook, {"fn_ref": watch})


class _Watch:
    """Tells the clock whether the module behind a hook was computed, on all rows (FasterCache may drop half)."""

    def __init__(self, fn_ref: Any, clock: Clock) -> None:
        self.clock = clock
        self._hooked, self._original = fn_ref.forward, fn_ref.original_forward
        self._computed: list[torch.Size] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the hook does: it may or may not compute the module."""
        self._computed = None
        output = self._hooked(*args, **kwargs)
        self.clock.record(self._computed == _rows(args, kwargs))
        return output

    def original_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module itself."""
        self._computed = _rows(args, kwargs)
        return self._original(*args, **kwargs)


def _rows(args: Any, kwargs: Any) -> list[torch.Size]:
    return [tensor.shape[:1] for tensor in tensors_in((args, kwargs))]
