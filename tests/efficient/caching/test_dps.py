"""DPS against the specification's vector and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_models import LiveTensors, noise

from iec.efficient.caching.dps import FeatureDistances, dps_schedule, schedule_cost


def distances_of(features, interval):
    distances = FeatureDistances(len(features), interval)
    for step, feature in enumerate(features):
        distances.add(step, torch.as_tensor(feature, dtype=torch.float32))
    return distances.table


def cost_by_definition(features, starts):
    """D(j, n) summed over the groups, straight from the features."""
    total = 0.0
    for j, end in itertools.pairwise([*starts, len(features)]):
        total += sum(
            np.abs(np.asarray(features[i], float) - np.asarray(features[j], float)).sum() for i in range(j, end)
        )
    return total


def schedules(num_steps, interval, groups=None):
    """Every allowed partition, as its group starts."""
    groups = math.ceil(num_steps / interval) if groups is None else groups
    for inner in itertools.combinations(range(1, num_steps), groups - 1):
        bounds = [0, *inner, num_steps]
        if all(math.ceil(interval / 2) <= b - a <= 2 * interval for a, b in itertools.pairwise(bounds)):
            yield tuple(bounds[:-1])


SCALARS = [0, 1, 2, 10, 11, 12, 13, 30, 31, 32]


def test_the_specifications_vector():
    features = [[value] for value in SCALARS]
    steps = dps_schedule(distances_of(features, 3), 3)
    assert steps == (0, 3, 5, 7)
    assert schedule_cost(distances_of(features, 3), steps) == 8 == cost_by_definition(features, steps)


values = st.lists(st.integers(-50, 50), min_size=2, max_size=11)


@settings(deadline=None, max_examples=150)
@given(values, st.integers(1, 5))
def test_the_schedule_costs_what_the_cheapest_of_all_costs(scalars, interval):
    assume(2 * interval <= len(scalars))
    features = [[value] for value in scalars]
    table = distances_of(features, interval)
    steps = dps_schedule(table, interval)
    costs = {starts: cost_by_definition(features, starts) for starts in schedules(len(scalars), interval)}
    assert costs[steps] == min(costs.values()) == schedule_cost(table, steps)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(4, 9), st.integers(1, 4))
def test_features_of_any_shape_are_summed_over_everything(seed, num_steps, interval):
    assume(2 * interval <= num_steps)
    features = noise(num_steps, 2, 3, 2, 2, seed=seed)
    table = distances_of(features, interval)
    for j in range(num_steps):
        for d in range(2 * interval):
            expected = (features[j + d] - features[j]).abs().sum().item() if j + d < num_steps else 0
            assert table[j, d].item() == pytest.approx(expected, rel=1e-5)
    costs = {starts: cost_by_definition(features.numpy(), starts) for starts in schedules(num_steps, interval)}
    assert costs[dps_schedule(table, interval)] == pytest.approx(min(costs.values()), rel=1e-5)


def test_batches_add_up():
    features = noise(8, 4, 2, 3, 3)
    distances = FeatureDistances(8, 2)
    for part in features.split(2, 1):
        for step, feature in enumerate(part):
            distances.add(step, feature)
    torch.testing.assert_close(distances.table, distances_of(features, 2))


def test_of_equal_schedules_the_one_with_the_earliest_starts_is_taken():
    constant = [[1.0]] * 10
    # ceil(10 / 3) = 4 groups of 2 to 6 steps; all cost nothing, and the last group begins as early as it can.
    assert dps_schedule(distances_of(constant, 3), 3) == (0, 2, 4, 6)


@pytest.mark.parametrize(("num_steps", "interval"), [(10, 1), (20, 3), (50, 10), (100, 15), (250, 20)])
def test_the_number_and_the_sizes_of_the_groups(num_steps, interval):
    steps = dps_schedule(distances_of(noise(num_steps, 1, 5), interval), interval)
    assert len(steps) == math.ceil(num_steps / interval)
    assert steps[0] == 0
    sizes = np.diff([*steps, num_steps])
    assert sizes.min() >= math.ceil(interval / 2)
    assert sizes.max() <= 2 * interval


def test_more_calls_than_steps_keep_the_number_of_groups():
    """Stable Diffusion's PLMS: 51 calls for 50 steps."""
    table = distances_of(noise(11, 1, 3), 5)
    assert len(dps_schedule(table, 5)) == 3
    steps = dps_schedule(table, 5, groups=2)
    costs = {starts: schedule_cost(table, starts) for starts in schedules(11, 5, 2)}
    assert len(steps) == 2
    assert schedule_cost(table, steps) == min(costs.values())
    with pytest.raises(ValueError, match="11 steps do not fit 1 groups of 3 to 10 steps"):
        dps_schedule(table, 5, groups=1)


def test_it_beats_the_uniform_schedule_in_its_own_objective():
    for seed in range(3):
        table = distances_of(noise(30, 1, 4, seed=seed).cumsum(0), 5)
        uniform = tuple(range(0, 30, 5))
        assert schedule_cost(table, dps_schedule(table, 5)) < schedule_cost(table, uniform)


def test_only_the_last_features_are_held():
    interval, size = 3, 4 * 1000
    with LiveTensors() as live:
        distances = FeatureDistances(40, interval)
        before = live.bytes
        for step in range(40):
            distances.add(step, torch.rand(1000))
        held = live.bytes - before
        # The held features, and at the peak the newest, the oldest, and the difference and its magnitude.
        assert held == (2 * interval - 1) * size
        assert live.peak - before <= held + 4 * size


def test_large_features_of_a_long_run_fit_into_little_memory():
    """250 steps of 3 MB each: once 39 of them are held, as many are held at every later step."""
    held = []
    with LiveTensors() as live:
        distances = FeatureDistances(250, 20)
        for step in range(45):
            distances.add(step, torch.full((1, 192, 64, 64), float(step)))
            held.append(live.bytes)
        assert live.peak < 300 * 2**20
    assert held[38:] == [held[38]] * 7
    assert distances.table[3, 5] == 5 * 192 * 64 * 64


@pytest.mark.parametrize("interval", [0, 6, 100])
def test_an_interval_beyond_half_of_the_steps_is_refused(interval):
    with pytest.raises(ValueError, match=f"from 1 to half of the steps, but got {interval} for 10 steps"):
        FeatureDistances(10, interval)
    with pytest.raises(ValueError, match="half of the steps"):
        dps_schedule(torch.zeros(10, 20), interval)


@pytest.mark.parametrize("order", [[1], [0, 2], [0, 1, 1], [0, 1, 2, 3, 4]])
def test_features_out_of_order_are_refused(order):
    distances = FeatureDistances(4, 2)
    for step in order[:-1]:
        distances.add(step, torch.zeros(1))
    with pytest.raises(ValueError, match=f"step {order[-1]} came out of order"):
        distances.add(order[-1], torch.zeros(1))
