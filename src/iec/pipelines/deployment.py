"""What a pipeline runs with: which networks denoise, what makes them efficient, and how strongly they are guided."""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from iec.storage.network_sketch import network_sketch

_DENOISERS = ("unet", "transformer", "prior", "decoder", "denoiser", "controlnet", "brushnet")
_GUIDANCE = ("guidance_scale", "true_cfg_scale", "guidance_scale_2", "guidance_rescale", "pag_scale")


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline that are evaluated in its loop, by name."""
    found = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {name: part for name, part in found.items() if name.startswith(_DENOISERS)} or found


def model_identity(pipe: Any) -> str:
    """16 hex digits over the weights that denoise, as they were before a technique of ours changed them."""
    changed = [own.model for own in _identities(pipe) if own.model is not None]
    return changed[0] if changed else network_sketch(denoisers(pipe))


def technique_of(pipe: Any) -> str:
    """What makes the pipeline efficient, in words that tell it from any other; `none` for a plain one."""
    ours = [own.name for own in _identities(pipe)]
    others = [f"{name}: {part}" for name, network in denoisers(pipe).items() for part in _added(network)]
    return "; ".join([*ours, *others]) or "none"


def call_arguments(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call, with its defaults for those that are not given."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {**{name: p.default for name, p in parameters.items() if p.default is not p.empty}, **given}


def guidance_of(arguments: Mapping[str, Any]) -> dict[str, float]:
    """The guidance scales among the arguments of a pipeline's call."""
    found = {name: arguments.get(name) for name in _GUIDANCE}
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """A scheduler's settings as JSON values."""
    kept = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    settings: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return settings


def different_setting(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first setting in which two schedulers differ, in words; None where they do not."""
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            return f"{name} {theirs.get(name)!r} in the place of {ours.get(name)!r}"
    return None


def _identities(pipe: Any) -> list[Any]:
    """What the pipeline's networks that carry a technique of ours say of themselves."""
    found = [getattr(type(network), "iec_technique", None) for network in denoisers(pipe).values()]
    return [own for own in found if own is not None]


def _added(network: Any) -> Iterator[str]:
    cache = getattr(network, "_cache_config", None)
    if cache is not None:
        yield _described(cache)
    if getattr(network, "enable_teacache", False):
        yield "TeaCache"
    if type(getattr(network, "_context_manager", None)).__module__.startswith("cache_dit."):
        yield "cache-dit"
    quantizer = getattr(network, "hf_quantizer", None)
    if quantizer is not None:
        yield f"quantized by {getattr(quantizer.quantization_config, 'quant_method', type(quantizer).__name__)}"
    kinds = {type(parameter.data).__name__ for parameter in network.parameters()}
    yield from (f"weights of {kind}" for kind in sorted(kinds - {"Tensor", "Parameter"}))


def _described(config: Any) -> str:
    if not is_dataclass(config):
        return type(config).__name__
    plain = (bool, int, float, str, tuple, list)
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    shown = ", ".join(f"{name}={value}" for name, value in values.items() if isinstance(value, plain))
    return f"{type(config).__name__}({shown})"
