"""diffusers' caches on the tiny pipelines, with settings that make some steps full and some cached."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

from .networks import STEPS, CogVideoX, Flux, Wan


@dataclass(frozen=True)
class Technique:
    """config: (the current timestep, asked for) -> settings. adaptive: decides by what it sees, not by the step."""

    name: str
    kind: type
    config: Callable[[Callable[[], Any]], Any]
    adaptive: bool = False

    def pipe(self, enabled=True):
        pipe = self.kind().pipe()
        if enabled:
            self.enable(pipe)
        return pipe

    def enable(self, pipe):
        pipe.transformer.enable_cache(self.config(lambda: pipe.current_timestep))

    def draw(self, pipe, **kwargs):
        return self.kind().draw(pipe, **kwargs)

    def __str__(self):
        return f"{self.name} on {self.kind.__name__}"


def first_block(threshold):
    return lambda now: FirstBlockCacheConfig(threshold)


def pyramid(interval):
    def config(now):
        settings = {"spatial_attention_block_skip_range": interval, "spatial_attention_timestep_skip_range": (1, 950)}
        return PyramidAttentionBroadcastConfig(**settings, current_timestep_callback=now)

    return config


def faster(**settings):
    def config(now):
        ranges = {"spatial_attention_timestep_skip_range": (-1, 850), "attention_weight_callback": lambda module: 0.5}
        return FasterCacheConfig(**ranges, **settings, current_timestep_callback=now)

    return config


def taylor(identifiers=None, order=1):
    settings = {"taylor_factors_dtype": torch.float32, "max_order": order, "cache_identifiers": identifiers}
    return lambda now: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, **settings)


def magnitudes(now):
    ratios = torch.linspace(1.0, 0.9, STEPS)
    return MagCacheConfig(0.25, max_skip_steps=2, num_inference_steps=STEPS, mag_ratios=ratios)


def spectral(now):
    return SeaCacheConfig(threshold=0.3)


TECHNIQUES = [
    Technique("FirstBlockCache", Flux, first_block(0.75), adaptive=True),
    Technique("FirstBlockCache", Wan, first_block(0.42), adaptive=True),
    Technique("FirstBlockCache", CogVideoX, first_block(0.7), adaptive=True),
    Technique("PyramidAttentionBroadcast", Flux, pyramid(2)),
    Technique("PyramidAttentionBroadcast", Wan, pyramid(4)),
    Technique("PyramidAttentionBroadcast", CogVideoX, pyramid(3)),
    Technique("FasterCache", Flux, faster(is_guidance_distilled=True)),
    Technique("FasterCache", CogVideoX, faster(unconditional_batch_skip_range=3, tensor_format="BFCHW")),
    Technique("TaylorSeer", Flux, taylor(order=2)),
    Technique("TaylorSeer", Wan, taylor([r"blocks\.\d+\.attn\d", r"blocks\.\d+\.ffn"])),
    Technique("MagCache", Flux, magnitudes),
    Technique("MagCache", Wan, magnitudes),
    Technique("SeaCache", Wan, spectral, adaptive=True),
]
