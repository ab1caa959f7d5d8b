"""diffusers' FasterCache: attention outputs are extrapolated, and the unconditional half of a batch is estimated."""

from collections.abc import Mapping
from typing import Any

import torch

from iec.pipelines.caches.hooks import HookCache

_DELTAS = ("low_frequency_delta", "high_frequency_delta")


class FasterCache(HookCache):
    """Full where every attention layer ran, and the network on the whole batch."""

    names = ("faster_cache_denoiser", "faster_cache_block")

    def full_settings(self, hook: Any) -> Mapping[str, Any]:
        # Between 0 and 0 lies no timestep.
        ranges = ("timestep_skip_range", "unconditional_batch_timestep_skip_range")
        return {name: (0, 0) for name in ranges if hasattr(hook, name)}

    def mix(self, new: dict[str, Any], old: dict[str, Any], samples: torch.Tensor) -> dict[str, Any]:
        mix = super().mix(new, old, samples)
        for name in _DELTAS:
            # One row per frame, [B F, ...]: the frames of a sample lie together.
            if isinstance(new.get(name), torch.Tensor) and isinstance(old.get(name), torch.Tensor):
                frames = samples.repeat_interleave(len(new[name]) // len(samples))
                mix.update(super().mix({name: new[name]}, {name: old[name]}, frames))
        return mix
