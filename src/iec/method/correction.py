"""The correction of one step: x^(k+1) = x^(k) + lambda (A_t x_t + B_t eps(x^(k), t) - x^(k)) (paper Eq. 10-13)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from iec.method.config import IECConfig
from iec.method.errors import finite_samples

Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Correction:
    """The corrected state and what was done to reach it.

    state: x^(K) [B, ...]. output: the relaxed model output e_hat whose step gives `state` (where one was asked for).
    residuals: per pass, the size of each sample's update [B]; NaN where a sample was frozen or fell back.
    changed, fell_back: bool [B]; a sample falls back to x^(0) where its correction was not finite.
    """

    state: torch.Tensor
    output: torch.Tensor | None
    residuals: tuple[torch.Tensor, ...]
    changed: torch.Tensor
    fell_back: torch.Tensor

    @property
    def evaluations(self) -> int:
        """How many passes were evaluated."""
        return len(self.residuals)


def correct(
    x_prev: torch.Tensor,
    predict: Predict,
    update: Predict,
    config: IECConfig,
    output: torch.Tensor | None = None,
    settle: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    relax: Callable[[torch.Tensor, torch.Tensor], float] | None = None,
) -> Correction:
    """Correct x_{t-1}^(0) = `x_prev` [B, ...] by K relaxed fixed-point iterations.

    predict: x -> eps(x, t), the denoiser at the step's own timestep.
    update: eps -> A_t x_t + B_t eps (+ sigma_t z), the step map from the fixed x_t with the step's own noise.
    output: e_0 with `x_prev = update(e_0)`; given, e_hat <- e_hat + lambda (eps - e_hat) is carried beside the state.
    relax: gives lambda from x^(k) and its residual, in the place of the settings': of a plan, or while it is fitted.
    settle: called after each pass with the samples whose update was kept, and those that fell back (both bool [B]).

    Each sample stands alone: it is frozen once its own update falls below the tolerance, and falls back to x^(0)
    where its own corrected state is not finite. Evaluation stops when no sample is left: with a positive tolerance
    that is also after a pass of lambda 0, whose update is zero.
    """
    x, e = x_prev, output
    if output is not None:
        del x_prev  # update(output) gives it again, should a sample fall back
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    changed, fell_back = ~active, ~active
    residuals = []
    for k, relaxation in enumerate(config.relaxations):
        if k > 0 and not active.any():
            break
        eps = predict(x)
        residual = update(eps).sub(x)
        if relax is not None:
            relaxation = relax(x, residual)
        delta = residual.mul_(relaxation)
        size = _size(delta, x, config)
        moved = _nonzero(delta)  # an update of zero keeps every bit, -0.0 included
        corrected = delta.add_(x)
        finite = finite_samples(corrected)
        kept, failed = active & finite, active & ~finite
        moved &= kept
        if e is not None:
            e = choose(moved, torch.lerp(e, eps.to(e.dtype), relaxation), e)
        del eps
        x = choose(moved, corrected, x)
        del residual, delta, corrected
        if k > 0 and failed.any():  # x is no longer x^(0), to which a failed sample falls back
            x = choose(failed, x_prev if output is None else update(output), x)
            e = None if e is None or output is None else choose(failed, output, e)
        residuals.append(torch.where(kept, size, torch.nan))
        changed, fell_back = (changed | moved) & ~failed, fell_back | failed
        active = kept & ~(size < config.tolerance)
        if settle is not None:
            settle(kept, failed)
    return Correction(x, e, tuple(residuals), changed, fell_back)


def _size(delta: torch.Tensor, x: torch.Tensor, config: IECConfig) -> torch.Tensor:
    size = _norm(delta)
    return size if config.tolerance_mode == "absolute" else size / (_norm(x) + 1e-12)


def _nonzero(x: torch.Tensor) -> torch.Tensor:
    """Whether any value of each sample is not zero, bool [B]; the extremes are found several times faster than all."""
    values = x.flatten(1)
    return values.amax(1).ne(0) | values.amin(1).ne(0) if values.numel() else values.any(1)


def _norm(x: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(
        x.flatten(1), dim=1, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return norm


def choose(samples: torch.Tensor, chosen: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`chosen` [B, ...] for the samples of the mask [B], `other` for the rest; mostly all are chosen, and nothing is
    computed."""
    if bool(samples.all()):
        return chosen
    return torch.where(samples.view(-1, *[1] * (chosen.dim() - 1)), chosen, other)
