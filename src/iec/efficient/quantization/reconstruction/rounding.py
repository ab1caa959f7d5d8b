"""AdaRound's mathematics (Nagel et al., 2020): soft rounding, its regulariser, and the schedule of that."""

import math

import torch

ZETA, GAMMA = 1.1, -0.1
#: The regulariser's exponent, at first and at last, and the share of the iterations before it sets in.
FIRST_BETA, LAST_BETA, WARM_UP = 20.0, 2.0, 0.2


def soft_rounding(alpha: torch.Tensor) -> torch.Tensor:
    """h(alpha), the rectified sigmoid in [0, 1]: what is added to floor(w / delta). At least 1/2 where alpha >= 0."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def alpha_of(fraction: torch.Tensor) -> torch.Tensor:
    """The alpha with h(alpha) = fraction, for fractions in [0, 1]."""
    return torch.logit((fraction - GAMMA) / (ZETA - GAMMA))


def rounding_loss(alpha: torch.Tensor, beta: float) -> torch.Tensor:
    """sum(1 - |2 h(alpha) - 1|^beta): 0 where every h is 0 or 1, one per weight at 1/2 (Eq. 24)."""
    return (1 - (2 * soft_rounding(alpha) - 1).abs().pow(beta)).sum()


def beta_at(iteration: int, iterations: int) -> float | None:
    """The exponent at an iteration: None during the warm-up, then from 20 down to 2 along a half cosine."""
    start = WARM_UP * iterations
    if iteration < start:
        return None
    passed = (iteration - start) / (iterations - start)
    return LAST_BETA + (FIRST_BETA - LAST_BETA) * 0.5 * (1 + math.cos(math.pi * passed))
