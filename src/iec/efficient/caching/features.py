"""The features that a cache would store, handed out at every step of full runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class
from iec.method.clock import current_clock


@contextmanager
def features_of(unet: Any, branch: int | None, on_feature: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """While entered, each evaluation of `unet` calls `on_feature(step, feature)` [B, C, H, W]; its results stay."""
    base = type(unet)
    # A cache that is full at every step changes nothing and stores every feature.
    unet.__class__ = cached_class(base, DeepCacheConfig(interval=1, branch=branch))

    def hook(module: Any, args: Any, output: Any) -> None:
        clock = current_clock()
        if clock.pass_index == 0:
            on_feature(clock.step, clock.storage[module])

    handle = unet.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        unet.__class__ = base
