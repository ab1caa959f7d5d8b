"""The DeepCache package (`DeepCacheSDHelper`): between full steps, all but the shallow blocks return stored outputs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

from torch import nn

from iec.method.clock import Clock
from iec.pipelines.caches.adapter import CacheAdapter, Call, replaced


class DeepCachePackage(CacheAdapter):
    """Full where the helper decides to skip nothing: every `cache_interval`-th step."""

    has_history = False

    def __init__(self, helper: Any, clock: Clock) -> None:
        super().__init__([(helper, name) for name in ("cached_output", "cur_timestep", "start_timestep")], clock)
        self.helper = helper

    @classmethod
    def find(cls, network: nn.Module, clock: Clock) -> Iterator["DeepCachePackage"]:
        """The helper that wraps the blocks of this UNet; only the wrapping functions know it."""
        block = getattr(network, "mid_block", None)
        # Model offloading puts a forward of its own before the wrapping one, and keeps that as `_old_forward`.
        for name in ("forward", "_old_forward"):
            function = getattr(block, "__dict__", {}).get(name)
            for cell in (function.__closure__ or ()) if isinstance(function, FunctionType) else ():
                if type(cell.cell_contents).__name__ == "DeepCacheSDHelper":
                    yield cls(cell.cell_contents, clock)

    def forced_full(self) -> AbstractContextManager[None]:
        settings = {**self.helper.params, "cache_interval": 1, "skip_mode": "uniform"}
        return replaced(self.helper, {"params": settings})

    def bound(self, call: Call) -> Call:
        def told(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            self.clock.record(not self.helper.is_skip_step(0, 0, "mid"))
            return output

        return told
