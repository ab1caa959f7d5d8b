"""Other libraries' feature caches behind the protocol of `iec.method.cache`; found when a run starts, by what is on."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from iec.method.clock import Clock
from iec.pipelines.caches.adapter import CacheAdapter, Call, bound_to
from iec.pipelines.caches.cache_dit import CacheDiT
from iec.pipelines.caches.deepcache import DeepCachePackage
from iec.pipelines.caches.faster_cache import FasterCache
from iec.pipelines.caches.first_block import FirstBlockCache
from iec.pipelines.caches.hooks import HookCache
from iec.pipelines.caches.mag_cache import MagCache
from iec.pipelines.caches.pyramid_attention import PyramidAttentionBroadcast
from iec.pipelines.caches.sea_cache import SeaCache
from iec.pipelines.caches.taylorseer import TaylorSeer
from iec.pipelines.errors import IECUnsupportedError

__all__ = ["CacheAdapter", "Call", "bound_to", "cache_adapters", "caches_of"]

_HOOK_CACHES: tuple[type[HookCache], ...] = (
    FirstBlockCache,
    PyramidAttentionBroadcast,
    FasterCache,
    TaylorSeer,
    MagCache,
    SeaCache,
)
_BY_NAME = {name: cache for cache in _HOOK_CACHES for name in cache.names}
# What it stores, the text's keys and values, is the same in every pass.
_LOSSLESS = frozenset({"text_kv_cache_transformer", "text_kv_cache_block"})
_claims: WeakSet[nn.Module] = WeakSet()
_lock = threading.Lock()


@contextmanager
def caches_of(network: nn.Module, clock: Clock) -> Iterator[list[CacheAdapter]]:
    """The caches that are on in `network`, entered; while they are, its evaluations tell `clock` whether they are full.

    Raises IECUnsupportedError for a cache without an adapter, RuntimeError where a cached network is in another run.
    """
    caches = cache_adapters(network, clock)
    with ExitStack() as stack:
        if caches:
            stack.enter_context(_claimed(network))
        yield [stack.enter_context(cache) for cache in caches]


def cache_adapters(network: nn.Module, clock: Clock) -> list[CacheAdapter]:
    """The caches that are on in `network`. Raises IECUnsupportedError for a cache without an adapter."""
    if getattr(network, "enable_teacache", False):
        raise IECUnsupportedError(
            f"TeaCache is on in this {type(network).__name__}, and its counters cannot be put back: use diffusers' "
            "FirstBlockCache, which builds on it, or disable correction (iec.disable)."
        )
    return [*_hook_caches(network, clock), *DeepCachePackage.find(network, clock), *CacheDiT.find(network, clock)]


def _hook_caches(network: nn.Module, clock: Clock) -> list[HookCache]:
    found: dict[type[HookCache], list[Any]] = defaultdict(list)
    for module in network.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name, hook in registry.hooks.items() if registry is not None else ():
            if name in _BY_NAME:
                found[_BY_NAME[name]].append(hook)
            elif hook._is_stateful and name not in _LOSSLESS:
                raise IECUnsupportedError(
                    f"The hook '{name}' of this {type(network).__name__} keeps a state that correction does not know: "
                    "remove it, or disable correction (iec.disable)."
                )
    return [cache(hooks, clock) for cache, hooks in found.items()]


@contextmanager
def _claimed(network: nn.Module) -> Iterator[None]:
    with _lock:
        if network in _claims:
            raise RuntimeError(
                f"This {type(network).__name__} is cached and already in a run, and its cache cannot serve two: "
                "give each pipeline a network of its own."
            )
        _claims.add(network)
    try:
        yield
    finally:
        _claims.discard(network)
