"""What can go wrong while sampling."""

import torch


class NonFiniteError(ValueError):
    """The state became infinite or NaN."""


def require_finite(state: torch.Tensor, step: int, timestep: float | int | None) -> torch.Tensor:
    """`state` [B, ...] itself. Raises NonFiniteError, naming the step, where any of its samples is not finite."""
    finite = finite_samples(state)
    if not finite.all():
        bad = int((~finite).sum())
        where = f"step {step}" if timestep is None else f"step {step} (timestep {timestep})"
        raise NonFiniteError(
            f"At {where}, {bad} of {len(finite)} samples became infinite or NaN: "
            "check the model, its dtype and its scheduler."
        )
    return state


def finite_samples(state: torch.Tensor) -> torch.Tensor:
    """Whether each sample of `state` [B, ...] is finite, bool [B].

    A NaN or an infinity is the largest or the smallest value of its sample, and finding those is several times cheaper
    than testing every value.
    """
    values = state.flatten(1)
    if not values.numel():
        return torch.ones(len(state), dtype=torch.bool, device=state.device)
    return torch.isfinite(values.amax(1)) & torch.isfinite(values.amin(1))
