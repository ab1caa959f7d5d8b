"""Time shift (Li et al., 2024, arXiv 2305.15583): the label at which a state looks at home, at no cost.

The state of a run that has gone astray has another variance than one of its timestep; the network is told the timestep
in a window whose noise variance 1 - alpha-bar is nearest. The update keeps its own timestep.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from iec.method.clock import current_clock

#: Below this timestep the image's own variance is no longer small beside the noise's, and labels are left alone.
CUTOFF = 200
#: What a UNet and a DiT call the state that they are given.
_INPUTS = ("sample", "hidden_states")


def shifted_labels(
    x: torch.Tensor, timestep: int, alphas_cumprod: torch.Tensor, window: int, cutoff: int = CUTOFF
) -> torch.Tensor:
    """The label, int64 [B], of each sample of x [B, ...] at `timestep`, within `window` / 2 of it on both sides.

    alphas_cumprod: alpha-bar of every training timestep. At or below `cutoff`, the timestep itself.
    """
    own = torch.full((len(x),), timestep, device=x.device)
    if timestep <= cutoff:
        return own
    low, high = max(0, timestep - window // 2), min(len(alphas_cumprod) - 1, timestep + window // 2)
    noise = 1 - alphas_cumprod[low : high + 1].to(x.device, torch.float64)
    variance = x.flatten(1).double().var(1)
    return low + (variance[:, None] - noise).abs().argmin(1)


@contextmanager
def time_shifted(network: nn.Module, window: int, alphas_cumprod: torch.Tensor) -> Iterator[None]:
    """While entered, `network` is told shifted labels, but not at a run's first step; 0 leaves everything as it is.

    The network is called as (x [B, ...], timestep), by position or by name, inside a run.
    """
    if window == 0:
        yield
        return

    def shift(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if current_clock().step == 0:
            return None
        x = args[0] if args else kwargs[next(name for name in _INPUTS if name in kwargs)]
        timestep = torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"])
        labels = shifted_labels(x, int(timestep.flatten()[0]), alphas_cumprod, window)
        if len(args) > 1:
            return (args[0], labels, *args[2:]), kwargs
        return args, {**kwargs, "timestep": labels}

    handle = network.register_forward_pre_hook(shift, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
