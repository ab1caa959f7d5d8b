"""The little languages of options and experiment files: what makes a model efficient, and how it is corrected.

`deepcache:5,branch=2`, `deepcache:5,forecast`, `w4a8`, `cachequant:5,w8a8`, and `relaxation=0.5,steps=edges:1/10`.
"""

import re
from typing import Any, cast

from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.efficient.quantization.reconstruction.config import Granularity, ReconstructionConfig
from iec.experiments.corrections import FITTED_IEC, Correction, FittedCorrection
from iec.experiments.settings import Technique
from iec.method.adams import AdamsConfig
from iec.method.config import IECConfig

_CACHE_FIELDS = {"branch": int, "schedule": str, "centre": int, "power": float, "forecast": bool}
#: Settings that are on where only their name is given.
_FLAGS = ("forecast",)
_QUANTIZATION_FIELDS = {
    "softmax": int,
    "first_last": int,
    "steps_per_group": int,
    "storage": str,
    "bias_correction": bool,
}
_CACHEQUANT_FIELDS = {"branch": int, "schedule": str, "storage": str, "bias_correction": bool, "forecast": bool}
_FITTED_FIELDS = {"history": int, "bias": bool, "bands": int}
_PRESETS = {
    "paper": IECConfig.paper,
    "released": IECConfig.released,
    "stable_diffusion": IECConfig.stable_diffusion,
}
#: What `parse_correction` knows by name.
CORRECTIONS = (*_PRESETS, "adams", "calibrated", "none")
_CORRECTION_NAMES = {
    "relaxation": "relaxation",
    "iterations": "num_iterations",
    "num_iterations": "num_iterations",
    "steps": "steps",
    "cached_steps": "cached_steps",
    "tolerance": "tolerance",
    "tolerance_mode": "tolerance_mode",
    "cache": "cache",
}


def parse_cache(text: str | None) -> DeepCacheConfig | None:
    """`deepcache:N`, with any of `,branch=..`, `,schedule=..`, `,centre=..`, `,power=..`, `,forecast`; None: no cache.

    `none` is no cache either.
    """
    if text is None or text == "none":
        return None
    head, *rest = text.split(",")
    name, _, interval = head.partition(":")
    if name != "deepcache":
        raise ValueError(f"Unknown cache '{name}': use deepcache:N, such as deepcache:5.")
    settings = {key: _cast(key, value, _CACHE_FIELDS) for key, value in map(_flag_or_pair, rest)}
    return DeepCacheConfig(interval=_number("the cache interval", interval, int), **settings)


def parse_quantization(text: str | None) -> QuantizationConfig | None:
    """`wXaY`, such as w4a8, with any of `,reconstruction=layer|block`, `,softmax=..`, `,storage=..`; None: none."""
    if text is None or text == "none":
        return None
    head, *rest = text.split(",")
    weights, activations = _bits(head)
    settings = _quantization_settings(rest, _QUANTIZATION_FIELDS)
    return QuantizationConfig(weights, activations, **settings)


def parse_cachequant(text: str | None) -> CacheQuantConfig | None:
    """`N,wXaY` or `N,float`, with any of `,branch=..`, `,schedule=..`, `,forecast`, `,reconstruction=layer|block`."""
    if text is None or text == "none":
        return None
    interval, *rest = text.split(",")
    if not rest:
        raise ValueError(f"'{text}' lacks the bits: write N,wXaY, such as 5,w8a8, or N,float to cache without them.")
    bits: dict[str, Any] = {"weights": None}
    if rest[0] != "float":
        bits = dict(zip(("weights", "activations"), _bits(rest[0]), strict=True))
    settings = _quantization_settings(rest[1:], _CACHEQUANT_FIELDS)
    return CacheQuantConfig(_number("the cache interval", interval, int), **bits, **settings)


def parse_technique(text: str) -> Technique | None:
    """Any of them: `float`, `deepcache:5`, `w8a8`, `cachequant:5,w4a8,reconstruction=block`."""
    if text in ("float", "none"):
        return None
    if text.startswith("cachequant:"):
        return parse_cachequant(text.removeprefix("cachequant:"))
    return parse_cache(text) if ":" in text.split(",")[0] else parse_quantization(text)


def parse_one_technique(cache: str | None, quantize: str | None, cachequant: str | None) -> Technique | None:
    """The technique that three options ask for together; a cache beside a quantization is both, uncorrected.

    Raises ValueError where they exclude one another.
    """
    caching, quantization, both = parse_cache(cache), parse_quantization(quantize), parse_cachequant(cachequant)
    if both is not None:
        if caching is not None or quantization is not None:
            raise ValueError("--cachequant already caches and quantizes: leave out --cache and --quantize.")
        return both
    if caching is not None and quantization is not None:
        raise ValueError(
            f"A cache and a quantization together are --cachequant {caching.interval},w{quantization.weights}"
            f"a{quantization.activations}."
        )
    return caching or quantization


def parse_correction(text: str | None) -> Correction | None:
    """A preset's name, `none`, or settings such as `relaxation=1+0.5,iterations=2,steps=0+5+9`; None: none.

    The presets are `paper`, `released` and `stable_diffusion`, of IEC; `adams`, also `adams,relaxation=0.6`;
    `calibrated`, also with `,history=..`, `,bias=true|false`, `,bands=1|3`; and `relaxation=fitted`.
    """
    if text is None or text == "none":
        return None
    if text in _PRESETS:
        return _PRESETS[text]()
    name, *rest = text.split(",")
    if name == "adams":
        return AdamsConfig(**{key: _cast(key, value, {"relaxation": float}) for key, value in map(_pair, rest)})
    if name == "calibrated":
        return FittedCorrection(**{key: _cast(key, value, _FITTED_FIELDS) for key, value in map(_pair, rest)})
    if text == "relaxation=fitted":
        return FITTED_IEC
    if "=" not in text:
        known = "none, calibrated, adams, relaxation=fitted, relaxation=0.5, " + ", ".join(_PRESETS)
        raise ValueError(f"Unknown correction '{text}': use {known}.")
    settings: dict[str, Any] = {}
    for key, value in map(_pair, text.split(",")):
        if key not in _CORRECTION_NAMES:
            raise ValueError(f"Unknown correction setting '{key}': use {', '.join(_CORRECTION_NAMES)}.")
        settings[_CORRECTION_NAMES[key]] = _correction_value(key, value)
    relaxation = settings.get("relaxation")
    if isinstance(relaxation, tuple) and "num_iterations" not in settings:
        settings["num_iterations"] = len(relaxation)
    return IECConfig(**settings)


def _bits(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"w(\d+)a(\d+)", text.lower())
    if found is None:
        raise ValueError(f"'{text}' are no bits: write wXaY, such as w8a8 or w4a8.")
    return int(found[1]), int(found[2])


def _quantization_settings(parts: list[str], kinds: dict[str, type]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in map(_flag_or_pair, parts):
        if key == "reconstruction":
            settings[key] = ReconstructionConfig(_granularity(value))
        else:
            settings[key] = _cast(key, value, {**kinds, "reconstruction": str})
    return settings


def _granularity(text: str) -> Granularity:
    if text not in ("layer", "block"):
        raise ValueError(f"Unknown reconstruction '{text}': use layer or block.")
    return cast(Granularity, text)


def _correction_value(key: str, value: str) -> Any:
    if key == "relaxation":
        values = tuple(_number(key, part, float) for part in value.split("+"))
        return values if len(values) > 1 else values[0]
    if key == "steps":
        is_indices = value.replace("+", "").isdigit()
        return [_number(key, part, int) for part in value.split("+")] if is_indices else value
    if key in ("iterations", "num_iterations"):
        return _number(key, value, int)
    if key == "tolerance":
        return _number(key, value, float)
    return _boolean(key, value) if key == "cached_steps" else value


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ValueError(f"'{text}' is no setting: write name=value, and separate settings by commas.")
    return key.strip(), value.strip()


def _flag_or_pair(text: str) -> tuple[str, str]:
    return (text.strip(), "true") if text.strip() in _FLAGS else _pair(text)


def _cast(key: str, value: str, kinds: dict[str, type]) -> Any:
    if key not in kinds:
        raise ValueError(f"Unknown setting '{key}': use {', '.join(kinds)}.")
    return _boolean(key, value) if kinds[key] is bool else _number(key, value, kinds[key])


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{name} must be true or false, but is '{text}'.")
    return text.lower() == "true"


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        wanted = "an integer" if kind is int else "a number"
        raise ValueError(f"{name} must be {wanted}, but is '{text}'.") from error
