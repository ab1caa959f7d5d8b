"""The state of a cache as a value: copied so that neither the cache nor a pass can change it, and mixed by rows."""

from collections import defaultdict
from enum import Enum
from typing import Any

import torch

from iec.method.cache import replace_rows

_MAPPINGS = (dict, defaultdict)
# The libraries whose own objects are part of a state.
_LIBRARIES = ("diffusers.hooks.", "cache_dit.")


def copied(value: Any) -> Any:
    """A copy of nested containers and state objects.

    Tensors are shared, since caches replace them; but not scalars: MagCache adds into them.
    """
    if isinstance(value, torch.Tensor):
        return value.clone() if value.dim() == 0 else value
    if type(value) in _MAPPINGS:
        copy = value.copy()
        copy.update((key, copied(item)) for key, item in value.items())
        return copy
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if _is_state(value):
        return _made(type(value), copied(value.__dict__))
    return value.copy() if type(value) is set else value


def mixed(new: Any, old: Any, samples: torch.Tensor) -> Any:
    """`new` with the rows of `samples` (bool [B]) from `old`, in all tensors that have rows of samples in both.

    What is no such tensor (a counter, a tensor of another shape) stays new.
    """
    if isinstance(new, torch.Tensor):
        return replace_rows(new, old, samples) if _have_rows(new, old, len(samples)) else new
    if type(new) is not type(old):
        return new
    if type(new) in _MAPPINGS:
        mix = new.copy()
        mix.update((key, mixed(new[key], old[key], samples)) for key in new.keys() & old.keys())
        return mix
    if type(new) in (list, tuple) and len(new) == len(old):
        return type(new)(mixed(a, b, samples) for a, b in zip(new, old, strict=True))
    if _is_state(new):
        return _made(type(new), mixed(new.__dict__, old.__dict__, samples))
    return new


def _have_rows(new: torch.Tensor, old: Any, count: int) -> bool:
    return isinstance(old, torch.Tensor) and old.shape == new.shape and new.dim() > 0 and len(new) % count == 0


def _is_state(value: Any) -> bool:
    own = type(value).__module__.startswith(_LIBRARIES)
    return own and hasattr(value, "__dict__") and not isinstance(value, (Enum, type))


def _made(kind: type, attributes: dict[str, Any]) -> Any:
    made: Any = object.__new__(kind)
    made.__dict__.update(attributes)
    return made
