"""`apply` and `remove`: an efficiency technique on a pipeline or on a bare denoiser."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from iec.efficient.cachequant.plan import KIND as CACHEQUANT
from iec.efficient.cachequant.plan import CacheQuantPlan
from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class, require_cacheable
from iec.efficient.plan_files import read_settings
from iec.efficient.quantization.network import restore_network
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.running import LengthCheck
from iec.runtime import Participant, attach, detach, network_of, require_pipeline

Technique = DeepCacheConfig | QuantizationPlan | CacheQuantPlan

_NAME = "efficiency"
_APPLIED = "_iec_applied"


def apply(target: DiffusionPipeline | nn.Module, technique: Technique | str | Path) -> None:
    """Make `target`, a pipeline or its denoiser, efficient; a second call replaces the first.

    technique: the settings of a cache, or a calibrated plan, or the folder of one. A bare denoiser then runs inside
    `iec.sample`, a pipeline as before. Raises TypeError or ValueError where the denoiser cannot take it, and then
    leaves everything as it was.
    """
    if isinstance(technique, (str, Path)):
        technique = load_plan(technique)
    if not isinstance(technique, (DeepCacheConfig, QuantizationPlan, CacheQuantPlan)):
        raise TypeError(f"apply needs a DeepCacheConfig or a plan, but got a {type(technique).__name__}.")
    denoiser = _denoiser(target)
    if isinstance(technique, DeepCacheConfig):
        require_cacheable(denoiser, technique)
    before = applied(target)
    remove(target)
    try:
        _put_on(target, denoiser, technique)
    except Exception:
        if before is not None:
            _put_on(target, denoiser, before)
        raise


def load_plan(folder: str | Path) -> QuantizationPlan | CacheQuantPlan:
    """The plan that `save_pretrained` wrote into `folder`. Raises ValueError where there is none."""
    if read_settings(folder).get("kind") == CACHEQUANT:
        return CacheQuantPlan.from_pretrained(folder)
    return QuantizationPlan.from_pretrained(folder)


def remove(target: DiffusionPipeline | nn.Module) -> None:
    """Give `target` its own computation back, bit for bit; a target without any technique is left alone.

    Raises ValueError, before anything is changed, where a plan kept no float weights.
    """
    denoiser = _denoiser(target)
    entry = getattr(type(denoiser), _APPLIED, None)
    if entry is not None and not isinstance(entry[1], DeepCacheConfig):
        restore_network(denoiser)
    if isinstance(target, DiffusionPipeline):
        detach(target, _NAME)
    if entry is not None:
        denoiser.__class__ = entry[0]


def applied(target: DiffusionPipeline | nn.Module) -> Technique | None:
    """The technique that `target` runs with, or None."""
    entry = getattr(type(_denoiser(target)), _APPLIED, None)
    return None if entry is None else entry[1]


def _put_on(target: DiffusionPipeline | nn.Module, denoiser: nn.Module, technique: Technique) -> None:
    base = type(denoiser)
    if isinstance(technique, DeepCacheConfig):
        derived, participant = cached_class(base, technique), Participant()
    else:
        derived, participant = technique.put_on(denoiser), LengthCheck(technique.num_steps)
    setattr(derived, _APPLIED, (base, technique))
    if isinstance(target, DiffusionPipeline):
        attach(target, _NAME, participant)
    denoiser.__class__ = derived


def _denoiser(target: Any) -> nn.Module:
    if not isinstance(target, DiffusionPipeline):
        if not isinstance(target, nn.Module):
            raise TypeError(f"A diffusers pipeline or a denoiser is needed, but a {type(target).__name__} was given.")
        return target
    require_pipeline(target)
    return network_of(target)
