"""The little languages of the options: `deepcache:5,branch=2` and `relaxation=0.5,steps=edges:1/10`."""

from typing import Any

from iec.efficient import DeepCacheConfig
from iec.method.config import IECConfig

_CACHE_FIELDS = {"branch": int, "schedule": str, "centre": int, "power": float}
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
    """`deepcache:N`, with any of `,branch=..`, `,schedule=..`, `,centre=..`, `,power=..`; `none` or None: no cache."""
    if text is None or text == "none":
        return None
    head, *rest = text.split(",")
    name, _, interval = head.partition(":")
    if name != "deepcache":
        raise ValueError(f"Unknown cache '{name}': use deepcache:N, such as deepcache:5.")
    settings = {key: _cast(key, value, _CACHE_FIELDS) for key, value in map(_pair, rest)}
    return DeepCacheConfig(interval=_number("the cache interval", interval, int), **settings)


def parse_correction(text: str | None) -> IECConfig | None:
    """`paper`, `released`, `none`, or settings such as `relaxation=1+0.5,iterations=2,steps=0+5+9`; None: none."""
    if text is None or text == "none":
        return None
    if text in ("paper", "released"):
        return IECConfig.paper() if text == "paper" else IECConfig.released()
    settings: dict[str, Any] = {}
    for key, value in map(_pair, text.split(",")):
        if key not in _CORRECTION_NAMES:
            raise ValueError(f"Unknown correction setting '{key}': use {', '.join(_CORRECTION_NAMES)}.")
        settings[_CORRECTION_NAMES[key]] = _correction_value(key, value)
    relaxation = settings.get("relaxation")
    if isinstance(relaxation, tuple) and "num_iterations" not in settings:
        settings["num_iterations"] = len(relaxation)
    return IECConfig(**settings)


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
    if key == "cached_steps":
        if value.lower() not in ("true", "false"):
            raise ValueError(f"cached_steps must be true or false, but is '{value}'.")
        return value.lower() == "true"
    return value


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ValueError(f"'{text}' is no setting: write name=value, and separate settings by commas.")
    return key.strip(), value.strip()


def _cast(key: str, value: str, kinds: dict[str, type]) -> Any:
    if key not in kinds:
        raise ValueError(f"Unknown cache setting '{key}': use {', '.join(kinds)}.")
    return _number(key, value, kinds[key])


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        wanted = "an integer" if kind is int else "a number"
        raise ValueError(f"{name} must be {wanted}, but is '{text}'.") from error
