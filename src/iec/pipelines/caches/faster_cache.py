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

    def mix(self, new: Any, old: Any, samples: torch.Tensor) -> Any:
        mix = super().mix(new, old, samples)
        for name in _DELTAS:
            delta = getattr(new, name, None)
            if delta is not None:
                # One row per frame, [B F, ...], and rolled: diffusers' fftshift goes over every axis.
                frames = samples.repeat_interleave(len(delta) // len(samples)).roll(len(delta) // 2)
                setattr(mix, name, super().mix(delta, getattr(old, name), frames))
        return mix
