"""Adams' correction beside a feature cache: the cache decides as without it, and the rule is that of the scheduler."""

import torch

import iec

from ..adams_double import adams_double
from ..by_hand import assert_same_state
from .networks import STEPS, Computed
from .techniques import parametrized
from .test_policies import plain_run

ADAMS = iec.AdamsConfig(0.6)


@parametrized()
def test_a_cached_run_is_corrected_and_costs_what_it_did(technique):
    plain, per_step, full_rows = plain_run(technique)
    pipe = technique.pipe()
    computed = Computed(technique.network(pipe))
    iec.enable(pipe, ADAMS)
    corrected, summary = technique.draw(pipe), iec.summary(pipe)
    iec.disable(pipe)
    double = technique.kind().pipe()
    adams_double(double.scheduler)
    technique.enable(double)
    computed_by_double = Computed(technique.network(double))
    assert_same_state(corrected, technique.draw(double))
    assert computed.rows == computed_by_double.rows
    assert (corrected - plain).abs().max() > 1e-3
    assert [record.rule for record in summary.steps] == ["none"] + ["adams"] * (STEPS - 1)
    assert summary.full_evaluations + summary.cached_evaluations == STEPS
    if not technique.adaptive:  # others decide by what they see, and they see other states
        assert computed.rows == sum(per_step)
        assert [bool(record.full) for record in summary.steps] == [rows == full_rows for rows in per_step]
        assert [record.full + record.cached for record in summary.steps] == [1] * STEPS


@parametrized()
def test_relaxation_0_leaves_the_cached_run_alone_bit_for_bit(technique):
    plain, per_step, full_rows = plain_run(technique)
    pipe = technique.pipe()
    iec.enable(pipe, iec.AdamsConfig(0.0))
    assert torch.equal(technique.draw(pipe), plain)
    assert [bool(record.full) for record in iec.summary(pipe).steps] == [rows == full_rows for rows in per_step]
