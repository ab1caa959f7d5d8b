"""DDIM: timestep sequences and the update x_{t-1} = A_t x_t + B_t eps + sigma_t z (paper Eq. 3-6).

Coefficients are float64 Python numbers; the state keeps its own dtype.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Spacing = Literal["quad", "uniform", "linspace"]
SPACINGS = ("quad", "uniform", "linspace")


@dataclass(frozen=True)
class Coefficients:
    """One step's A_t, B_t and sigma_t."""

    A: float
    B: float
    sigma: float

    def update(self, x: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """x_{t-1} = A_t x_t + B_t eps + sigma_t z, in the dtype of `x` (paper Eq. 6)."""
        state = self.A * x + self.B * eps
        return state if noise is None else state + self.sigma * noise


def alphas_cumprod_linear(num_train_timesteps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> torch.Tensor:
    """alpha-bar of linearly spaced betas, float64 [num_train_timesteps]."""
    betas = torch.linspace(start, end, num_train_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


def spaced_timesteps(
    num_steps: int, spacing: Spacing = "quad", num_train_timesteps: int = 1000, drop_duplicates: bool = False
) -> list[int]:
    """The timesteps in sampling order, noisiest first.

    `quad`: int(linspace(0, sqrt(0.8 * 1000), T)^2), the paper's CIFAR-10 spacing, with its duplicates unless dropped.
    `uniform`: c k + 1 with c = 1000 // T, the latent models' spacing; T must divide 1000 and be at most 500.
    `linspace`: round(linspace(0, 999, T)), any T up to 1000.
    With one step, the noisiest timestep of the sequence is used.
    Raises ValueError for an unknown spacing or a number of steps that it cannot take.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int):
        raise TypeError(f"num_steps must be an integer, but is {num_steps!r}.")
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must lie in 1..{num_train_timesteps}, but is {num_steps}.")
    if spacing == "quad":
        timesteps = [int(value * value) for value in _linspace(math.sqrt(0.8 * num_train_timesteps), num_steps)]
    elif spacing == "uniform":
        if num_train_timesteps % num_steps or num_steps > num_train_timesteps // 2:
            raise ValueError(
                f"uniform spacing needs a number of steps that divides {num_train_timesteps} and is at most "
                f"{num_train_timesteps // 2}, but got {num_steps}: use linspace for any other number."
            )
        stride = num_train_timesteps // num_steps
        timesteps = [stride * k + 1 for k in range(num_steps)]
    elif spacing == "linspace":
        timesteps = [round(value) for value in _linspace(float(num_train_timesteps - 1), num_steps)]
    else:
        raise ValueError(f"Unknown spacing '{spacing}': use {', '.join(SPACINGS)}.")
    if drop_duplicates:
        timesteps = sorted(set(timesteps))
    return timesteps[::-1]


def _linspace(end: float, count: int) -> list[float]:
    """0..end with an exact endpoint, rounded exactly as the reference sequences are."""
    if count == 1:
        return [end]
    stride = end / (count - 1)
    return [k * stride for k in range(count - 1)] + [end]


def alpha_pairs(
    timesteps: Sequence[int], alphas_cumprod: torch.Tensor, spacing: Spacing = "quad"
) -> list[tuple[float, float]]:
    """(alpha-bar_t, alpha-bar of the next state) per step; the last state is clean, but alpha-bar_0 in `uniform`."""
    alphas = alphas_cumprod.double().tolist()
    final = alphas[0] if spacing == "uniform" else 1.0
    current = [alphas[t] for t in timesteps]
    return list(zip(current, [*current[1:], final], strict=True))


def coefficients(alpha: float, alpha_prev: float, eta: float = 0.0) -> Coefficients:
    """A_t, B_t and sigma_t from alpha-bar_t and alpha-bar_{t-1} (paper Eq. 3-6).

    A duplicated timestep gives exactly 1, 0, 0. Raises ValueError where eta lies outside [0, 1].
    """
    if isinstance(eta, bool) or not isinstance(eta, (int, float)):
        raise TypeError(f"eta must be a number, but is {eta!r}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], but is {eta}.")
    sigma = eta * math.sqrt((1 - alpha / alpha_prev) * (1 - alpha_prev) / (1 - alpha)) if eta else 0.0
    direction = math.sqrt(max(0.0, 1 - alpha_prev - sigma**2))
    ratio = math.sqrt(alpha_prev / alpha)
    return Coefficients(ratio, direction - ratio * math.sqrt(1 - alpha), sigma)
