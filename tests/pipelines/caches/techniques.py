"""Caches on the tiny pipelines, with settings that make some steps full and some cached."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

from .networks import STEPS, CogVideoX, Flux, StableDiffusion, Wan


@dataclass(frozen=True, eq=False)
class Technique:
    """A cache that diffusers has.

    config: (the current timestep, asked for) -> settings. adaptive: it decides by what it sees, not by the step.
    """

    name: str
    kind: type
    config: Callable[[Callable[[], Any]], Any]
    adaptive: bool = False

    def pipe(self, enabled=True):
        pipe = self.kind().pipe()
        if enabled:
            self.enable(pipe)
        return pipe

    def network(self, pipe):
        return self.kind().network_of(pipe)

    def enable(self, pipe):
        self.network(pipe).enable_cache(self.config(lambda: pipe.current_timestep))

    def disable(self, pipe):
        self.network(pipe).disable_cache()

    def enabled_on(self, network, now):
        """Enable the cache on a bare network, `now()` being the current timestep; returns what empties the cache."""
        network.enable_cache(self.config(now))
        return network._reset_stateful_cache

    def draw(self, pipe, **kwargs):
        return self.kind().draw(pipe, **kwargs)

    def __str__(self):
        return f"{self.name} on {self.kind.__name__}"


class PackageTechnique(Technique):
    """The helper of the DeepCache package; config: its settings."""

    def enable(self, pipe):
        pipe.helper = import_module("DeepCache").DeepCacheSDHelper(pipe)
        pipe.helper.set_params(**self.config)
        pipe.helper.enable()

    def disable(self, pipe):
        pipe.helper.disable()

    def enabled_on(self, network, now):
        timesteps, _ = self.kind().schedule()
        pipe = SimpleNamespace(unet=network, scheduler=SimpleNamespace(timesteps=timesteps))
        self.enable(pipe)
        return pipe.helper.cached_output.clear


class CacheDiTTechnique(Technique):
    """cache-dit's DBCache; config: its settings, and with or without the TaylorSeer calibrator."""

    def settings(self):
        cache_dit = import_module("cache_dit")
        settings, calibrated = self.config
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if calibrated else None
        config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2, **settings)
        return {"cache_config": config, "calibrator_config": calibrator}

    def enable(self, pipe):
        import_module("cache_dit").enable_cache(pipe, **self.settings())

    def disable(self, pipe):
        import_module("cache_dit").disable_cache(pipe)

    def enabled_on(self, network, now):
        import_module("cache_dit").enable_cache(network, **self.settings())
        return lambda: import_module("cache_dit").refresh_context(network)


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


DIFFUSERS = [
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


# Two of three steps reuse; a schedule for DBCache, which otherwise decides by a threshold.
STATIC = {"steps_computation_mask": [1, 1, 0, 1, 0, 0], "steps_computation_policy": "static"}
DYNAMIC = {"residual_diff_threshold": 0.5, "max_accumulated_residual_diff_threshold": 0.9}
PACKAGES = {
    "DeepCache": [
        PackageTechnique("DeepCache package", StableDiffusion, {"cache_interval": 3, "cache_branch_id": 0}),
        PackageTechnique("DeepCache package, branch 1", StableDiffusion, {"cache_interval": 2, "cache_branch_id": 1}),
    ],
    "cache_dit": [
        CacheDiTTechnique("DBCache", Flux, (STATIC, False)),
        CacheDiTTechnique("DBCache with TaylorSeer", Flux, (STATIC, True)),
        CacheDiTTechnique("DBCache", Wan, (DYNAMIC, False), adaptive=True),
        CacheDiTTechnique("DBCache with TaylorSeer", Wan, (DYNAMIC, True), adaptive=True),
    ],
}


def _parameters():
    for technique in DIFFUSERS:
        yield pytest.param(technique, id=str(technique), marks=pytest.mark.filterwarnings("ignore:torch.meshgrid"))
    for name, techniques in PACKAGES.items():
        marks = (
            pytest.mark.skipif(find_spec(name) is None, reason=f"needs {name}: pip install 'iec-diffusion[caches]'"),
            pytest.mark.filterwarnings("ignore"),  # of its own
        )
        for technique in techniques:
            yield pytest.param(technique, id=str(technique), marks=marks)


TECHNIQUES = list(_parameters())


def parametrized(techniques=TECHNIQUES):
    """A test of each of these techniques."""
    return pytest.mark.parametrize("technique", techniques)
