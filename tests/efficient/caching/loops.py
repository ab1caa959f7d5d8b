"""The corrected loop with a feature cache, written out."""

import torch


@torch.no_grad()
def corrected_loop(model, x, timesteps, step, full_steps, relaxations=(), policy="refresh", cached_steps=False):
    """x_0.

    model: `full(x, t)` -> (eps, feature), and `cached(x, t, feature)` -> eps. step: (i, x_t, eps) -> x_{t-1}.
    """
    stored = None
    for i, t in enumerate(timesteps):
        full = i in full_steps
        if full:
            e, stored = model.full(x, t)
        else:
            e = model.cached(x, t, stored)
        state = step(i, x, e)
        if full or cached_steps:
            for relaxation in relaxations:
                if policy == "reuse" and not full:
                    e = model.cached(state, t, stored)
                else:
                    e, feature = model.full(state, t)
                    if policy == "refresh":
                        stored = feature
                state = state + relaxation * (step(i, x, e) - state)
        x = state
    return x
