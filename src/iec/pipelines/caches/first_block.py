"""diffusers' FirstBlockCache: the other blocks are skipped where the first block's residual has moved too little."""

from collections.abc import Mapping
from typing import Any

from iec.pipelines.caches.hooks import HookCache


class FirstBlockCache(HookCache):
    """Full where every block ran, in every cache context."""

    names = ("fbc_leader_block_hook", "fbc_block_hook")
    has_history = False

    def full_settings(self, hook: Any) -> Mapping[str, Any]:
        # Not by the threshold: a residual of zero moves by 0/0, which exceeds nothing.
        return {"_should_compute_remaining_blocks": _always} if hasattr(hook, "threshold") else {}


def _always(residual: Any) -> bool:
    return True
