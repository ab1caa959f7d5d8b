"""The variable in which a scheduler's ODE is straight, whatever the network predicts.

With x divided by its signal level, dx/ds = eps, the noise prediction, where s is the noise-to-signal ratio; for flow
matching dx/dsigma = v, the velocity. v- and x0-prediction are affine in them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from iec.pipelines.errors import IECUnsupportedError


@dataclass(frozen=True)
class Straight:
    """h = scale * output + shift * sample."""

    scale: float = 1.0
    shift: float = 0.0

    def of(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """h [B, ...] from a model output and the state that it was made at."""
        if self.scale == 1.0 and self.shift == 0.0:
            return output
        return self.scale * output + self.shift * sample


def straight(scheduler: Any, timestep: Any) -> Straight:
    """How h follows from what the network predicts, at the step that `scheduler` takes next, at `timestep`.

    Raises IECUnsupportedError for a prediction type or noise levels that are not known.
    """
    return straight_at(scheduler, lambda: noise_ratio(scheduler, timestep))


def straight_at(scheduler: Any, ratio_of_step: Callable[[], float]) -> Straight:
    """How h follows from what the network predicts at a noise-to-signal ratio, which is asked for only if needed."""
    config = scheduler.config
    predicts = config.get("prediction_type", "epsilon")
    if config.get("sigma_data") is not None:
        return _preconditioned(ratio_of_step(), float(config.sigma_data), predicts)
    if predicts in ("epsilon", "flow_prediction"):
        return Straight()
    if predicts not in ("v_prediction", "sample"):
        raise IECUnsupportedError(f"The prediction type '{predicts}' of {type(scheduler).__name__} is not known.")
    ratio = ratio_of_step()
    signal, noise = _levels(ratio)
    # Schedulers whose input is scaled keep the state undivided: x0 + ratio * eps.
    state = signal if scales_input(scheduler) else 1.0
    if predicts == "v_prediction":
        return Straight(signal, noise * state)
    if noise == 0:
        raise IECUnsupportedError("A clean state says nothing of its noise: leave out the timestep of no noise.")
    return Straight(-signal / noise, state / noise)


def noise_ratio(scheduler: Any, timestep: Any) -> float:
    """s = sigma / alpha, of the step that comes next; infinite for a state of pure noise."""
    if getattr(scheduler, "sigmas", None) is not None:
        return float(scheduler.sigmas[_index(scheduler, timestep)])
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise IECUnsupportedError(f"The noise levels of {type(scheduler).__name__} are not known.")
    alpha = float(scheduler.alphas_cumprod[int(timestep)])
    return math.sqrt(1 / alpha - 1) if alpha > 0 else math.inf


def scales_input(scheduler: Any) -> bool:
    """Whether the scheduler keeps the state as x0 + s eps, and scales what the network is given."""
    return hasattr(scheduler, "is_scale_input_called")


def _index(scheduler: Any, timestep: Any) -> int:
    index = getattr(scheduler, "step_index", None)
    if index is None:
        index = getattr(scheduler, "begin_index", None)
    if index is None:
        first = torch.as_tensor(timestep).cpu().flatten()[:1]
        index = (torch.as_tensor(scheduler.timesteps).cpu() == first).nonzero().flatten().tolist()[0]
    return int(index)


def _levels(ratio: float) -> tuple[float, float]:
    if math.isinf(ratio):
        return 0.0, 1.0
    signal = 1 / math.sqrt(1 + ratio**2)
    return signal, ratio * signal


def _preconditioned(sigma: float, data: float, predicts: str) -> Straight:
    """EDM: x0 = c_skip x + c_out F, and h = (x - x0) / sigma (Karras et al., 2022)."""
    total = sigma**2 + data**2
    skip, out = data**2 / total, sigma * data / math.sqrt(total)
    return Straight((out if predicts == "v_prediction" else -out) / sigma, (1 - skip) / sigma)
