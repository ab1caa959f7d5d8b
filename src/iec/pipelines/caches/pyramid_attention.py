"""diffusers' PyramidAttentionBroadcast: an attention layer returns its latest output for a number of calls."""

from collections.abc import Mapping
from typing import Any

from iec.pipelines.caches.hooks import HookCache


class PyramidAttentionBroadcast(HookCache):
    """Full where every attention layer ran."""

    names = ("pyramid_attention_broadcast",)

    def full_settings(self, hook: Any) -> Mapping[str, Any]:
        return {"timestep_skip_range": (0, 0)}  # between 0 and 0 lies no timestep
