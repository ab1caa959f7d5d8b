"""What can go wrong while sampling."""

import torch


class NonFiniteError(ValueError):
    """The state became infinite or NaN."""


def require_finite(state: torch.Tensor, step: int, timestep: float | int | None) -> torch.Tensor:
    """`state` [B, ...] itself. Raises NonFiniteError, naming the step, where any of its samples is not finite."""
    finite = torch.isfinite(state).flatten(1).all(1)
    if not finite.all():
        bad = int((~finite).sum())
        where = f"step {step}" if timestep is None else f"step {step} (timestep {timestep})"
        raise NonFiniteError(
            f"At {where}, {bad} of {len(finite)} samples became infinite or NaN: "
            "check the model, its dtype and its scheduler."
        )
    return state
