"""`apply` and `remove`: an efficiency technique on a pipeline or on a bare denoiser."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class, require_cacheable
from iec.efficient.quantization.network import quantized_class, restore_network
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.running import LengthCheck
from iec.runtime import Participant, attach, detach, network_of, require_pipeline

Technique = DeepCacheConfig | QuantizationPlan

_NAME = "efficiency"
_APPLIED = "_iec_applied"


def apply(target: DiffusionPipeline | nn.Module, technique: Technique | str | Path) -> None:
    """Make `target`, a pipeline or its denoiser, efficient; a second call replaces the first.

    technique: the settings of a cache, or a calibrated plan, or the folder of one. A bare denoiser then runs inside
    `iec.sample`, a pipeline as before. Raises TypeError or ValueError where the denoiser cannot take it, and then
    leaves everything as it was.
    """
    if isinstance(technique, (str, Path)):
        technique = QuantizationPlan.from_pretrained(technique)
    if not isinstance(technique, (DeepCacheConfig, QuantizationPlan)):
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


def remove(target: DiffusionPipeline | nn.Module) -> None:
    """Give `target` its own computation back, bit for bit; a target without any technique is left alone.

    Raises ValueError, before anything is changed, where a plan kept no float weights.
    """
    denoiser = _denoiser(target)
    entry = getattr(type(denoiser), _APPLIED, None)
    if entry is not None and isinstance(entry[1], QuantizationPlan):
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
    participant = Participant()
    if isinstance(technique, QuantizationPlan):
        technique.put_on(denoiser)
        derived, participant = quantized_class(base), LengthCheck(technique.num_steps)
    else:
        derived = cached_class(base, technique)
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
