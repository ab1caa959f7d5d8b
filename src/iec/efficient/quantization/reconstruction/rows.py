"""Rows of the arguments of a call: tensors along whose first axis the samples lie, in tuples, lists and dicts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def map_rows(value: Any, count: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with `function` applied to every tensor in it that has rows of `count` samples; all else stays.

    Such a tensor's length is a multiple of `count`: as many rows in a row for each sample.
    """
    if isinstance(value, torch.Tensor):
        return function(value) if value.dim() and len(value) and len(value) % count == 0 else value
    if isinstance(value, (tuple, list)):
        return type(value)(map_rows(item, count, function) for item in value)
    if isinstance(value, dict):
        return {key: map_rows(item, count, function) for key, item in value.items()}
    return value


def take(value: Any, count: int, samples: torch.Tensor | slice) -> Any:
    """The rows of these samples, of `count`."""
    return map_rows(value, count, lambda x: _taken(x, count, samples))


def join(values: Sequence[Any], counts: Sequence[int]) -> Any:
    """Several batches of one structure, of `counts` samples each, as one."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        has_rows = all(x.dim() and len(x) % n == 0 for x, n in zip(values, counts, strict=True))
        return torch.cat(list(values)) if has_rows else first
    if isinstance(first, (tuple, list)):
        return type(first)(join(items, counts) for items in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: join([value[key] for value in values], counts) for key in first}
    return first


def _taken(x: torch.Tensor, count: int, samples: torch.Tensor | slice) -> torch.Tensor:
    each = len(x) // count
    return x[samples] if each == 1 else x.view(count, each, *x.shape[1:])[samples].flatten(0, 1)
