"""Sampling written a second time, in numpy and in the x0-hat form, for the tests to compare with."""

import numpy as np
import torch

ALPHAS = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))


def scaled_linear(start: float, end: float) -> np.ndarray:
    """Alpha-bar of the latent models: betas whose roots are linearly spaced."""
    return np.cumprod(1 - np.linspace(start**0.5, end**0.5, 1000) ** 2)


def quad(num_steps: int) -> list[int]:
    """The published formula; it has no sensible value for one step, which starts from its noisiest timestep."""
    if num_steps == 1:
        return [800]
    return [int(root**2) for root in np.linspace(0, np.sqrt(0.8 * 1000), num_steps)][::-1]


def pairs(timesteps: list[int], alphas: np.ndarray = ALPHAS, final: float = 1.0) -> list[tuple[float, float]]:
    current = [float(alphas[t]) for t in timesteps]
    return list(zip(current, [*current[1:], final], strict=True))


def ddim(x, e, alpha, alpha_prev, eta=0.0, z=0.0):
    """One step in the x0-hat form (works on numbers, arrays and tensors)."""
    x0 = (x - (1 - alpha) ** 0.5 * e) / alpha**0.5
    sigma = eta * ((1 - alpha / alpha_prev) * (1 - alpha_prev) / (1 - alpha)) ** 0.5
    return alpha_prev**0.5 * x0 + max(0.0, 1 - alpha_prev - sigma**2) ** 0.5 * e + sigma * z


def ddim_ab(alpha: float, alpha_prev: float) -> tuple[float, float]:
    """A and B of the deterministic step, read off the x0-hat form."""
    return ddim(1.0, 0.0, alpha, alpha_prev), ddim(0.0, 1.0, alpha, alpha_prev)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit: -0.0 differs from 0.0, and NaN equals itself."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))
