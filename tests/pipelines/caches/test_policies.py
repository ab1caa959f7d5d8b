"""Caches around corrections: which steps are full, what a pass costs, what zero relaxation leaves alone."""

from functools import cache
from itertools import pairwise

import pytest
import torch

import iec

from .networks import STEPS, Computed
from .techniques import parametrized

PASSES = 2


@cache
def plain_run(technique):
    """The cached run without correction: its result, the rows computed in each step, those of a full step."""
    pipe = technique.pipe()
    computed, ends = Computed(technique.network(pipe)), [0]

    def note(pipe, i, t, tensors):
        ends.append(computed.rows)
        return {}

    result = technique.draw(pipe, callback_on_step_end=note)
    per_step = [b - a for a, b in pairwise(ends)]
    technique.disable(pipe)
    with computed.during() as rows:
        uncached = technique.draw(pipe, steps=STEPS)
    assert (result - uncached).abs().max() > 1e-2  # the cache has an effect
    return result, per_step, rows[0] // STEPS


def corrected_run(technique, config):
    """The result, the summary, and the rows computed."""
    pipe = technique.pipe()
    computed = Computed(technique.network(pipe))
    with iec.enabled(pipe, config):
        return technique.draw(pipe), iec.summary(pipe), computed.rows


def zero(policy, cached_steps=False, passes=PASSES):
    return iec.IECConfig(0.0, passes, cached_steps=cached_steps, cache=policy, tolerance=0.0)


@parametrized()
def test_the_summary_knows_the_steps_that_were_computed_in_full(technique):
    result, per_step, full_rows = plain_run(technique)
    full = [rows == full_rows for rows in per_step]
    assert any(full)
    assert not all(full)
    found, summary, _ = corrected_run(technique, iec.IECConfig(num_iterations=0))
    assert [bool(record.full) for record in summary.steps] == full
    assert torch.equal(found, result)


@parametrized()
def test_only_full_steps_are_corrected_and_each_pass_costs_one_full_evaluation(technique):
    expected, per_step, full_rows = plain_run(technique)
    result, summary, rows = corrected_run(technique, zero("bypass"))
    assert torch.equal(result, expected)
    corrected = [i for i in range(STEPS) if per_step[i] == full_rows]
    assert summary.corrected == corrected
    assert summary.skipped == [i for i in range(STEPS) if i not in corrected]
    assert rows == sum(per_step) + PASSES * len(corrected) * full_rows
    assert summary.full_evaluations == (1 + PASSES) * len(corrected)
    assert summary.cached_evaluations == STEPS - len(corrected)


@parametrized()
@pytest.mark.parametrize("policy", ["bypass", "reuse"])
def test_relaxation_0_leaves_the_cached_run_alone_bit_for_bit(technique, policy):
    expected, per_step, full_rows = plain_run(technique)
    result, summary, rows = corrected_run(technique, zero(policy, cached_steps=True))
    assert torch.equal(result, expected)
    assert summary.corrected == list(range(STEPS))
    assert summary.skipped == []
    if policy == "bypass":  # every pass is one full evaluation
        assert rows == sum(per_step) + PASSES * STEPS * full_rows
    elif not technique.adaptive:  # every pass is what its step was; others may decide otherwise at the corrected state
        assert rows == (1 + PASSES) * sum(per_step)
    assert summary.full_evaluations + summary.cached_evaluations == (1 + PASSES) * STEPS


@parametrized()
def test_a_refreshing_pass_costs_one_full_evaluation_and_changes_later_steps(technique):
    expected, _, full_rows = plain_run(technique)
    result, summary, rows = corrected_run(technique, zero("refresh", cached_steps=technique.adaptive))
    passes = sum(record.passes for record in summary.steps)
    assert passes == PASSES * len(summary.corrected)
    main_full = [record.full - record.passes for record in summary.steps]
    assert set(main_full) == {0, 1}
    assert summary.full_evaluations == passes + sum(main_full)
    assert rows >= summary.full_evaluations * full_rows
    assert rows < (summary.full_evaluations + summary.cached_evaluations) * full_rows
    assert not torch.equal(result, expected)
