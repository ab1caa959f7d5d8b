"""PLMS: Adams-Bashforth combinations of noise predictions over DDIM updates (the paper's sampler for Stable Diffusion).

T timesteps take T+1 network calls: the first interval is gone through twice, the second time with the mean of the
predictions at both of its ends. A step here is one network call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def adams_bashforth(recent: Sequence[torch.Tensor]) -> torch.Tensor:
    """The prediction of a step from its own and those of the steps before it: one to four, newest first."""
    weights = _ADAMS_BASHFORTH[len(recent)]
    return torch.stack([weight * value for weight, value in zip(weights, recent, strict=True)]).sum(0)


@dataclass(frozen=True)
class PLMSCall:
    """One network call: where it evaluates, and which interval it steps over."""

    timestep: int
    interval: int


def plms_calls(timesteps: Sequence[int]) -> list[PLMSCall]:
    """The network calls for `timesteps` in sampling order: call 1 evaluates at timestep 1 and redoes interval 0."""
    calls = [PLMSCall(timestep, i) for i, timestep in enumerate(timesteps)]
    if len(calls) == 1:
        return calls
    return [calls[0], PLMSCall(calls[1].timestep, 0), *calls[1:]]


def combine(eps: torch.Tensor, history: Sequence[torch.Tensor], call: int) -> torch.Tensor:
    """The noise prediction that call number `call` steps with; `history` holds the kept predictions, oldest first."""
    if call == 1:
        return (eps + history[-1]) / 2
    return adams_bashforth([eps, *reversed(history[-3:])])


def extend(history: Sequence[torch.Tensor], eps: torch.Tensor, call: int) -> list[torch.Tensor]:
    """The history after call number `call`, whose prediction (corrected, where it was) is `eps`."""
    return list(history) if call == 1 else [*history[-2:], eps]
