"""`apply` and `remove`: an efficiency technique on a pipeline or on a bare denoiser."""

from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class, require_cacheable
from iec.runtime import Participant, attach, detach, network_of, require_pipeline

_NAME = "efficiency"
_APPLIED = "_iec_applied"


def apply(target: DiffusionPipeline | nn.Module, config: DeepCacheConfig) -> None:
    """Make `target`, a pipeline or its denoiser, efficient; a second call replaces the first.

    A bare denoiser then runs inside `iec.sample`, a pipeline as before. Raises TypeError or ValueError, before
    anything is changed, where the denoiser cannot take `config`.
    """
    if not isinstance(config, DeepCacheConfig):
        raise TypeError(f"apply needs a DeepCacheConfig, but got a {type(config).__name__}.")
    denoiser = _denoiser(target)
    require_cacheable(denoiser, config)
    if isinstance(target, DiffusionPipeline):
        attach(target, _NAME, Participant())
    base = _base_class(denoiser)
    applied = cached_class(base, config)
    setattr(applied, _APPLIED, (base, config))
    denoiser.__class__ = applied


def remove(target: DiffusionPipeline | nn.Module) -> None:
    """Give `target` its own computation back, bit for bit; a target without any technique is left alone."""
    denoiser = _denoiser(target)
    if isinstance(target, DiffusionPipeline):
        detach(target, _NAME)
    denoiser.__class__ = _base_class(denoiser)


def applied(target: DiffusionPipeline | nn.Module) -> DeepCacheConfig | None:
    """The technique that `target` runs with, or None."""
    entry = getattr(type(_denoiser(target)), _APPLIED, None)
    return None if entry is None else entry[1]


def _base_class(denoiser: nn.Module) -> type[nn.Module]:
    entry = getattr(type(denoiser), _APPLIED, None)
    base: type[nn.Module] = type(denoiser) if entry is None else entry[0]
    return base


def _denoiser(target: Any) -> nn.Module:
    if not isinstance(target, DiffusionPipeline):
        if not isinstance(target, nn.Module):
            raise TypeError(f"A diffusers pipeline or a denoiser is needed, but a {type(target).__name__} was given.")
        return target
    require_pipeline(target)
    return network_of(target)
