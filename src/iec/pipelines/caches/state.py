"""The state of a cache as a value: copied so that neither the cache nor a pass can change it, and mixed by rows."""

from collections import defaultdict
from typing import Any

import torch

from iec.method.cache import replace_rows

_MAPPINGS = (dict, defaultdict)


def copied(value: Any) -> Any:
    """A copy of nested lists, tuples and dicts. Tensors are shared, but for scalars: MagCache adds into them."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.dim() == 0 else value
    if type(value) in _MAPPINGS:
        copy = value.copy()
        copy.update((key, copied(item)) for key, item in value.items())
        return copy
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
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
    return new


def _have_rows(new: torch.Tensor, old: Any, count: int) -> bool:
    return isinstance(old, torch.Tensor) and old.shape == new.shape and new.dim() > 0 and len(new) % count == 0
