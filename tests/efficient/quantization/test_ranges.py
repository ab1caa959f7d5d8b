"""The 40-candidate L2.4 search against brute force, and the histogram's search against the exact one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iec.efficient.quantization.histogram import Histogram
from iec.efficient.quantization.quantizer import fake_quantize, grid_of_range, quantize
from iec.efficient.quantization.ranges import (
    SHRINKS,
    choose,
    choose_from_histogram,
    search_histogram,
    search_tensor,
    search_weight,
)


def test_the_candidates_are_the_published_forty():
    assert len(SHRINKS) == 40
    assert SHRINKS[0] == 1
    assert SHRINKS[-1] == pytest.approx(0.22)
    assert np.diff(SHRINKS) == pytest.approx([-0.02] * 39)


def brute_force(x, bits):
    """The loss of each candidate in plain float64 numpy, with the textbook formulas."""
    losses = []
    for i in range(0, 80, 2):
        low, high = min(0.0, (1 - 0.01 * i) * x.min()), max(0.0, (1 - 0.01 * i) * x.max())
        delta = (high - low) / (2**bits - 1) or 1.0
        zero = np.round(-low / delta)
        codes = np.clip(np.round(x / delta) + zero, 0, 2**bits - 1)
        losses.append((np.abs((codes - zero) * delta - x) ** 2.4).mean())
    return np.array(losses)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 8), st.floats(-3, 3), st.sampled_from([1e-20, 1, 1e6]))
def test_the_chosen_candidate_loses_least(seed, count, bits, shift, scale):
    x = (normal(count, seed=seed) + shift) * scale
    losses = brute_force(x.double().numpy(), bits)
    # Two candidates may be equal but for rounding.
    chosen = int(choose(x.reshape(1, -1), bits))
    assert losses[chosen] <= losses.min() * (1 + 1e-3) + 1e-18 * scale**2.4
    stored = search_tensor(x, bits)
    assert stored.delta.shape == stored.zero_point.shape == ()
    loss = ((fake_quantize(x, stored) - x).double().abs() ** 2.4).mean().item()
    assert loss == pytest.approx(losses[chosen], rel=1e-3, abs=1e-15 * scale**2.4)


def test_the_search_by_hand():
    # 100 ones and a 4 in 2 bits: steps of f * 4/3 miss the ones by |f * 4/3 - 1| and the 4 by 4 (1 - f).
    # f = 0.80 loses 100 * 0.067^2.4 + 0.80^2.4 = 0.74, f = 0.78 loses 0.78, f = 0.82 loses 0.85, f = 1 loses 7.2.
    grid = search_tensor(torch.tensor([1.0] * 100 + [4.0]), 2)
    assert grid.delta.item() == pytest.approx(0.8 * 4 / 3)
    assert grid.zero_point.item() == 0


def test_every_output_channel_has_a_search_of_its_own():
    weight = normal(6, 5, 3, 3) * torch.logspace(-3, 3, 6).view(-1, 1, 1, 1)
    weight[2] = weight[2].abs() + 1e-3
    grid = search_weight(weight, 4)
    assert grid.delta.shape == grid.zero_point.shape == (6, 1, 1, 1)
    for channel, row in enumerate(weight):
        alone = search_tensor(row, 4)
        assert grid.delta[channel].item() == alone.delta.item()
        assert grid.zero_point[channel].item() == alone.zero_point.item()


@pytest.mark.parametrize("bits", [2, 8])
def test_channels_that_are_constant_or_zero_are_kept(bits):
    weight = torch.tensor([[0.0, 0.0], [3.0, 3.0], [-3.0, -3.0], [1e-44, -1e-44]])
    grid = search_weight(weight, bits)
    assert (grid.delta > 0).all()
    kept = fake_quantize(weight, grid)
    assert kept[0].tolist() == [0, 0]
    torch.testing.assert_close(kept, weight, rtol=1e-6, atol=1e-40)
    assert quantize(weight, grid)[1].tolist() == [2**bits - 1] * 2


def test_the_scored_range_is_the_stored_range_where_zero_lies_outside():
    """The released code scores with a widened range and stores the bare one (D15)."""
    x = normal(4000).abs() + 5
    chosen = int(choose(x.reshape(1, -1), 4))
    stored = search_tensor(x, 4)
    expected = grid_of_range(torch.zeros(()), x.max() * SHRINKS[chosen], 4)
    assert stored.delta.item() == pytest.approx(expected.delta.item(), rel=1e-6)
    assert stored.zero_point.item() == 0
    assert chosen == int(brute_force(x.double().numpy(), 4).argmin())


# The histogram

SHAPES = {
    "normal": lambda n, s: normal(n, seed=s),
    "swish": lambda n, s: torch.nn.functional.silu(2 * normal(n, seed=s)),
    "relu": lambda n, s: normal(n, seed=s).relu(),
    "softmax": lambda n, s: (3 * normal(max(1, n // 64), 64, seed=s)).softmax(1),
    "flat softmax": lambda n, s: (0.3 * normal(max(1, n // 64), 64, seed=s)).softmax(1),
    "heavy tails": lambda n, s: normal(n, seed=s) ** 3,
    "one outlier": lambda n, s: torch.cat([normal(n, seed=s), torch.tensor([40.0])]),
    "away from zero": lambda n, s: normal(n, seed=s).abs() + 5,
    "two levels": lambda n, s: normal(n, seed=s).sign() + 0.1 * normal(n, seed=s + 1),
}
samples = st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(200, 20_000), st.integers(0, 10**6))


def streamed(x):
    histogram = Histogram()
    for part in x.flatten().split(max(1, x.numel() // 3)):
        histogram.add(part)
    return histogram


@settings(deadline=None, max_examples=100)
@given(samples)
def test_in_8_bits_the_histogram_agrees_with_the_exact_search_within_one_candidate(sample):
    name, count, seed = sample
    x = SHAPES[name](count, seed)
    assert abs(choose_from_histogram(streamed(x), 8) - int(choose(x.reshape(1, -1), 8))) <= 1


@settings(deadline=None, max_examples=60)
@given(samples, st.integers(2, 8))
def test_the_histograms_choice_loses_hardly_more_than_the_best(sample, bits):
    name, count, seed = sample
    x = SHAPES[name](count, seed).flatten()
    losses = brute_force(x.double().numpy(), bits)
    assert losses[choose_from_histogram(streamed(x), bits)] <= 1.02 * losses.min()


def test_the_histograms_grid_is_the_candidates():
    x = normal(5000) + 1
    histogram = streamed(x)
    shrink = SHRINKS[choose_from_histogram(histogram, 4)]
    grid = search_histogram(histogram, 4)
    expected = grid_of_range(x.min() * shrink, x.max() * shrink, 4)
    assert shrink < 1
    assert (grid.delta.item(), grid.zero_point.item()) == (expected.delta.item(), expected.zero_point.item())


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-44])
def test_a_histogram_of_one_value_keeps_it(value):
    grid = search_histogram(streamed(torch.full((50,), value)), 8)
    assert fake_quantize(torch.tensor(value), grid).item() == pytest.approx(value, rel=1e-6, abs=1e-40)
    assert math.isfinite(grid.delta.item())
