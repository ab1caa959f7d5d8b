"""diffusers' SeaCache: the blocks' residual is reused while the spectrally filtered latents have moved too little."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from iec.method.clock import Clock
from iec.pipelines.caches.hooks import HookCache
from iec.pipelines.errors import IECUnsupportedError


class SeaCache(HookCache):
    """Full where every block ran, in every cache context."""

    names = ("sea_cache_root", "sea_cache_leader_block", "sea_cache_block", "sea_cache_post_norm")

    def __init__(self, hooks: Sequence[Any], clock: Clock) -> None:
        super().__init__(hooks, clock)
        if any(getattr(hook, "use_stack_boundary", False) for hook in hooks):
            raise IECUnsupportedError(
                "SeaCache skips the blocks of this network in a way that correction cannot follow: "
                "call disable_cache() on the network, or disable correction (iec.disable)."
            )

    def full_settings(self, hook: Any) -> Mapping[str, Any]:
        # Every distance reaches a threshold of 0.
        return {"config": dataclasses.replace(hook.config, threshold=0.0)} if hasattr(hook, "config") else {}
