"""The small run on which CacheQuant is tested."""

from dataclasses import replace

from tiny_models import ddim_pipe, tiny_unet

from iec.efficient import CacheQuantConfig

STEPS, INTERVAL, BRANCH = 8, 4, 1
CACHE = CacheQuantConfig(INTERVAL, BRANCH, weights=None)
QUANTIZED = replace(CACHE, weights=8)
SETTINGS = {"samples": 6, "batch_size": 4}


def pipe_of(seed=0):
    return ddim_pipe(tiny_unet(seed))
