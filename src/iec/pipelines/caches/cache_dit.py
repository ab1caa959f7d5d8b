"""cache-dit's DBCache, with or without its calibrators: the middle blocks are skipped by the first blocks' residual."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from iec.method.clock import Clock
from iec.pipelines.caches.adapter import CacheAdapter, replaced


class CacheDiT(CacheAdapter):
    """Full where no group of blocks was skipped, in either branch of guidance."""

    def __init__(self, manager: Any, clock: Clock) -> None:
        super().__init__([(manager, "_cached_context_manager")], clock)
        self.manager = manager
        self._forced = False

    @classmethod
    def find(cls, network: nn.Module, clock: Clock) -> Iterator["CacheDiT"]:
        """The manager of the contexts in which cache-dit caches this network's blocks."""
        manager = getattr(network, "_context_manager", None)
        if type(manager).__module__.startswith("cache_dit."):
            yield cls(manager, clock)

    def forced_full(self) -> AbstractContextManager[None]:
        return replaced(self, {"_forced": True})

    def installed(self) -> Iterable[AbstractContextManager[Any]]:
        decide = self.manager.can_cache

        def can_cache(*args: Any, **kwargs: Any) -> bool:
            # Asked even where it is overruled, since it keeps statistics that later decisions use.
            skip = decide(*args, **kwargs) and not self._forced
            self.clock.record(not skip)
            return skip

        yield replaced(self.manager, {"can_cache": can_cache})
