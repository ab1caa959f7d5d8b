"""diffusers' TaylorSeer: modules are extrapolated from their latest outputs and the differences between those."""

from collections.abc import Mapping
from typing import Any

from iec.pipelines.caches.hooks import HookCache


class TaylorSeer(HookCache):
    """Full where every module ran."""

    names = ("taylorseer_cache",)

    def full_settings(self, hook: Any) -> Mapping[str, Any]:
        return {"cache_interval": 1}
