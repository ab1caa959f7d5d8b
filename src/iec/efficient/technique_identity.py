"""A technique in words that tell it from any other: its settings, and a digest of what calibration found."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from iec.storage.fingerprint import tensors_fingerprint

#: Where the weights are stored does not change what a network computes.
_STORAGE = frozenset({"storage", "keep_original"})


def technique_identity(technique: Any) -> str:
    """Such as `DeepCacheConfig(interval=5, branch=0)`; a plan adds 16 hex digits over its tensors."""
    config = getattr(technique, "config", technique)
    tensors = dict(_tensors(technique, ""))
    digest = f" {tensors_fingerprint(tensors)}" if tensors else ""
    return f"{type(technique).__name__}({', '.join(_settings(config))}){digest}"


def _settings(config: Any) -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in _STORAGE and value != field.default:
            yield f"{field.name}={value}"


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}/{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name}/{i}")
