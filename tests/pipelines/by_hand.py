"""The corrected loop written out: a deep copy of the scheduler and copied generators take each dry step."""

import copy

import torch


def copied(generator):
    if isinstance(generator, list):
        return [copied(one) for one in generator]
    if generator is None:
        return None
    twin = torch.Generator()
    twin.set_state(generator.get_state())
    return twin


def corrected_run(
    predict, scheduler, x, relaxations=(0.5,), selected=None, generator=None, taken=None, after=None, **settings
):
    """The final state of x <- x + lambda (Phi(e(x)) - x) at the selected steps (None: all), with x_t fixed in Phi.

    predict: (x, t) -> e. The scheduler's timesteps are already set. The real step takes the relaxed output.
    after: what the pipeline does to the state between two steps, (i, x) -> x.
    taken: a list that gets, for each corrected step, the corrected state and the real step of the relaxed output.
    """
    if generator is not None:
        settings = {**settings, "generator": generator}
    for i, t in enumerate(scheduler.timesteps):
        e = predict(x, t)
        if selected is not None and i not in selected:
            x = scheduler.step(e, t, x, **settings).prev_sample
            x = x if after is None else after(i, x)
            continue
        frozen = copy.deepcopy(scheduler)

        def dry(output, frozen=frozen, t=t, x_t=x):
            again = {**settings, "generator": copied(generator)} if generator is not None else settings
            return copy.deepcopy(frozen).step(output, t, x_t, **again).prev_sample

        state, relaxed = dry(e), e
        for relaxation in relaxations:
            output = predict(state, t)
            state = state + relaxation * (dry(output) - state)
            relaxed = torch.lerp(relaxed, output, relaxation)
        stepped = scheduler.step(relaxed, t, x, **settings).prev_sample
        if taken is not None:
            taken.append((state, stepped))
        x = state if after is None else after(i, state)
    return x


def assert_same_state(a, b, tolerance=1e-5):
    """Equal relative to the larger of 1 and the largest element."""
    assert a.dtype == b.dtype
    scale = max(1.0, b.abs().max().item())
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)


def frozen(value):
    """A copy of plain data and tensors that compares by value."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape), repr(value.flatten().tolist()))  # NaN equals itself
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    return type(value) if callable(value) else repr(value)
