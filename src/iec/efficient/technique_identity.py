"""A technique in words that tell it from any other: its settings, and a digest of what calibration found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from iec.storage.fingerprint import tensors_fingerprint

#: Where the weights are stored does not change what a network computes.
_STORAGE = frozenset({"storage", "keep_original"})


@dataclass(frozen=True)
class TechniqueIdentity:
    """What a network that a technique is on says of itself.

    name: such as `DeepCacheConfig(interval=5, branch=0)`; a plan adds 16 hex digits over its tensors. model: the
    fingerprint of the network before its weights were changed; None where they are as they were.
    """

    name: str
    model: str | None

    @classmethod
    def of(cls, technique: Any) -> "TechniqueIdentity":
        """The identity of settings or of a plan."""
        config = getattr(technique, "config", technique)
        tensors = dict(_tensors(technique, ""))
        digest = f" {tensors_fingerprint(tensors)}" if tensors else ""
        changed = getattr(technique, "quantization", technique if hasattr(technique, "weights") else None) is not None
        name = f"{type(technique).__name__}({', '.join(_settings(config))}){digest}"
        return cls(name, technique.model if changed else None)


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
