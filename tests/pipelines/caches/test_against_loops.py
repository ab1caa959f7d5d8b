"""Corrections of cached pipelines against loops written by hand, in which no cache is ever put back.

The state in which a cache meets an evaluation is made anew each time: an empty cache is shown everything that it
should have seen until then.
"""

import pytest
import torch

import iec

from .networks import Computed
from .techniques import parametrized


class Seen:
    """What a cache has seen: the inputs of earlier steps, each forced full or not."""

    def __init__(self, technique):
        self.technique, self.kind = technique, technique.kind()
        self.timesteps, self.step = self.kind.schedule()
        self.history, self.now = [], None
        self.cached, self.plain = self.kind.network(), self.kind.network()
        self.computed, self.plainly_computed = Computed(self.cached), Computed(self.plain)
        self.empty = technique.enabled_on(self.cached, lambda: self.now)

    def evaluate(self, x, i):
        """The cached guided output at `x` in step i, and how many rows it computed."""
        self.empty()
        for seen, j, forced in [*self.history, (x, i, False)]:
            self.now = self.timesteps[j]
            if forced and self.technique.name == "FirstBlockCache":
                self.empty()  # it knows no steps, and without features it computes
            with self.computed.during() as rows:
                output = self.kind.guided(self.cached, seen, self.now, j)
        return output, rows[0]

    def uncached(self, x, i):
        with self.plainly_computed.during() as rows:
            output = self.kind.guided(self.plain, x, self.timesteps[i], i)
        return output, rows[0]


@torch.no_grad()
def by_hand(technique, relaxations, policy, cached_steps):
    """The result, and the steps that were corrected."""
    seen, corrected = Seen(technique), []
    x = seen.kind.start()
    for i in range(len(seen.timesteps)):
        e, rows = seen.evaluate(x, i)
        state, shown = seen.step(i, x, e), (x, i, False)
        if rows == seen.uncached(x, i)[1] or cached_steps:
            corrected.append(i)
            for relaxation in relaxations:
                again, _ = seen.evaluate(state, i) if policy == "reuse" else seen.uncached(state, i)
                if policy == "refresh":
                    shown = (state, i, True)
                state = state + relaxation * (seen.step(i, x, again) - state)
        seen.history.append(shown)
        x = state
    return x, corrected


CASES = [
    ("bypass", True),
    ("reuse", True),
    ("refresh", False),  # at cached steps, the hand-written loop could not force the caches that count
]


@parametrized()
@pytest.mark.parametrize(("policy", "cached_steps"), CASES)
def test_a_corrected_cached_run_equals_the_loop(technique, policy, cached_steps):
    relaxations = (0.4,) if cached_steps else (0.6, 0.3)
    pipe = technique.pipe()
    config = iec.IECConfig(relaxations, len(relaxations), cached_steps=cached_steps, cache=policy, tolerance=0.0)
    with iec.enabled(pipe, config):
        result = technique.draw(pipe)
        summary = iec.summary(pipe)
    expected, corrected = by_hand(technique, relaxations, policy, cached_steps)
    assert summary.corrected == corrected
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(result / scale, expected / scale, rtol=0, atol=2e-5)
    assert (result - technique.draw(pipe)).abs().max() > 1e-3
