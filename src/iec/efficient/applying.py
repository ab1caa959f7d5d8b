"""`apply` and `remove`: an efficiency technique on a pipeline or on a bare denoiser."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from iec.efficient.cachequant.plan import KIND as CACHEQUANT
from iec.efficient.cachequant.plan import CacheQuantPlan
from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class, require_cacheable
from iec.efficient.caching.plan import KIND as DEEPCACHE
from iec.efficient.caching.plan import DeepCachePlan
from iec.efficient.quantization.float_source import FloatSource, find_float_source
from iec.efficient.quantization.layers import Storage
from iec.efficient.quantization.network import restore_network, stored_bytes
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.running import RunCheck, refuse_saving
from iec.efficient.technique_identity import TechniqueIdentity
from iec.runtime import Participant, attach, detach, network_of, require_pipeline
from iec.storage.plan_files import read_settings, require_model

Plan = DeepCachePlan | QuantizationPlan | CacheQuantPlan
Technique = DeepCacheConfig | Plan

#: What leaves the weights alone.
_CACHES = (DeepCacheConfig, DeepCachePlan)
_NAME = "efficiency"
_APPLIED = "_iec_applied"


@dataclass(frozen=True)
class _Applied:
    """What a denoiser runs with: its own class, the technique, and where dropped float weights are read again."""

    base: type
    technique: Technique
    floats: FloatSource | None


def apply(
    target: DiffusionPipeline | nn.Module,
    technique: Technique | str | Path,
    storage: Storage | None = None,
    keep_original: bool | None = None,
) -> None:
    """Make `target`, a pipeline or its denoiser, efficient; a second call replaces the first.

    technique: the settings of a cache, or a calibrated plan, or the folder of one. A bare denoiser then runs inside
    `iec.sample`, a pipeline as before. storage, keep_original: in the place of those that a plan was calibrated with.
    Raises TypeError or ValueError where the denoiser cannot take it, or packed weights could not be put back and
    `keep_original` does not say that this is meant; everything is then left as it was.
    """
    if isinstance(technique, (str, Path)):
        technique = load_plan(technique)
    if not isinstance(technique, Technique):
        raise TypeError(f"apply needs a DeepCacheConfig or a plan, but got a {type(technique).__name__}.")
    technique = _stored(technique, storage, keep_original)
    denoiser = _denoiser(target)
    if isinstance(technique, DeepCacheConfig):
        require_cacheable(denoiser, technique)
        technique.require_applicable()
    before = applied(target)
    remove(target)
    try:
        _put_on(target, denoiser, technique)
    except Exception:
        if before is not None:
            _put_on(target, denoiser, before)
        raise


def load_plan(folder: str | Path) -> Plan:
    """The plan that `save_pretrained` wrote into `folder`. Raises ValueError where there is none."""
    kind = read_settings(folder).get("kind")
    if kind == DEEPCACHE:
        return DeepCachePlan.from_pretrained(folder)
    return CacheQuantPlan.from_pretrained(folder) if kind == CACHEQUANT else QuantizationPlan.from_pretrained(folder)


def remove(target: DiffusionPipeline | nn.Module) -> None:
    """Give `target` its own computation back, bit for bit; a target without any technique is left alone.

    Packed weights are read again from the folder that the model came from. Raises ValueError, before anything is
    changed, where they were not kept and cannot be read.
    """
    denoiser = _denoiser(target)
    entry = _entry(denoiser)
    if entry is not None and not isinstance(entry.technique, _CACHES):
        restore_network(denoiser, None if entry.floats is None else entry.floats.read)
    if isinstance(target, DiffusionPipeline):
        detach(target, _NAME)
    if entry is not None:
        denoiser.__class__ = entry.base


def applied(target: DiffusionPipeline | nn.Module) -> Technique | None:
    """The technique that `target` runs with, or None."""
    entry = _entry(_denoiser(target))
    return None if entry is None else entry.technique


def model_bytes(target: DiffusionPipeline | nn.Module) -> int:
    """The bytes of the weights of `target`, a pipeline's denoiser or a denoiser, as it is now, kept float ones too."""
    return stored_bytes(_denoiser(target))


def _put_on(target: DiffusionPipeline | nn.Module, denoiser: nn.Module, technique: Technique) -> None:
    base, floats = type(denoiser), None
    derived: Any
    if isinstance(technique, DeepCacheConfig):
        derived, participant = cached_class(base, technique), Participant()
    else:
        floats = _float_source(denoiser, technique)
        derived = technique.put_on(denoiser)
        derived.save_pretrained = refuse_saving
        participant = RunCheck(technique.num_steps, technique.sampler)
    # A pipeline that shares the network runs with the technique too, so the network says what it is.
    derived.iec_technique = TechniqueIdentity.of(technique)
    setattr(derived, _APPLIED, _Applied(base, technique, floats))
    if isinstance(target, DiffusionPipeline):
        attach(target, _NAME, participant)
    denoiser.__class__ = derived


def _entry(denoiser: nn.Module) -> _Applied | None:
    entry: _Applied | None = getattr(type(denoiser), _APPLIED, None)
    return entry


def _quantization(technique: Technique) -> QuantizationPlan | None:
    return technique if isinstance(technique, QuantizationPlan) else getattr(technique, "quantization", None)


def _stored(technique: Technique, storage: Storage | None, keep_original: bool | None) -> Technique:
    """`technique` with the weights stored in another way."""
    chosen: dict[str, Any] = {"storage": storage, "keep_original": keep_original}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if not chosen:
        return technique
    quantization = _quantization(technique)
    if quantization is None:
        raise ValueError(f"{' and '.join(chosen)} cannot be chosen: nothing is quantized here.")
    quantization = replace(quantization, config=replace(quantization.config, **chosen))
    if isinstance(technique, CacheQuantPlan):
        return replace(technique, config=replace(technique.config, **chosen), quantization=quantization)
    return quantization


def _float_source(denoiser: nn.Module, technique: Any) -> FloatSource | None:
    """Where the float weights that `technique` drops can be read again; None where it drops none, or need not put
    them back. Raises ValueError where they cannot be read and that was not accepted.
    """
    quantization = _quantization(technique)
    if quantization is None or quantization.config.storage == "simulate" or quantization.config.keep_original:
        return None
    require_model(denoiser, technique.model)
    try:
        return find_float_source(denoiser, technique.model)
    except ValueError as error:
        if quantization.config.keep_original is None:
            raise ValueError(
                f"{str(error).rstrip('.')}, so its float weights could not be put back: "
                "pass keep_original=False to accept that, or keep_original=True to keep them too."
            ) from error
        return None


def _denoiser(target: Any) -> nn.Module:
    if not isinstance(target, DiffusionPipeline):
        if not isinstance(target, nn.Module):
            raise TypeError(f"A diffusers pipeline or a denoiser is needed, but a {type(target).__name__} was given.")
        return target
    require_pipeline(target)
    return network_of(target)
