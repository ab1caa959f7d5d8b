"""The scheduler's state around a dry step."""

import copy
from typing import Any

import torch

from iec.runtime.hooks import Hook

# Tables that `step` reads and never writes; sharing them keeps a snapshot at a few microseconds.
_CONSTANTS = frozenset(
    "betas alphas alphas_cumprod final_alpha_cumprod timesteps sigmas alpha_t sigma_t lambda_t one "
    "_internal_dict _alpha_pairs".split()
)


class SchedulerState:
    """Everything `step` may change in a scheduler; tensors are cloned, since some schedulers add in place."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._state = _copy_entries(scheduler.__dict__)

    def restore(self) -> None:
        """Put the state back; it may be put back again later."""
        self._scheduler.__dict__.clear()
        self._scheduler.__dict__.update(_copy_entries(self._state))


def copied_scheduler(scheduler: Any) -> Any:
    """A copy that steps by itself, quickly made: it shares the tables, and no hook of a run."""
    copied = copy.copy(scheduler)
    entries = {name: value for name, value in scheduler.__dict__.items() if not isinstance(value, Hook)}
    copied.__dict__ = _copy_entries(entries)
    return copied


def _copy_entries(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name in _CONSTANTS else _copy(value) for name, value in entries.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is list:
        return [_copy(item) for item in value]
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    return value
