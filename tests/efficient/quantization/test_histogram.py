"""The widening histogram: exact counts, whatever the order and the batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import noise

from iec.efficient.quantization.histogram import BINS, Histogram

# Of very different sizes, but such that none vanishes beside another in float32's range of exponents.
sizes = st.builds(math.ldexp, st.floats(-1, 1, width=16), st.integers(-40, 40))
values = st.lists(st.one_of(sizes, st.integers(-9, 9).map(float)), min_size=1, max_size=30)
batches = st.lists(values, min_size=1, max_size=5)


def of(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(torch.tensor(part))
    return histogram


def same(a, b):
    assert (a.exponent, a.first, a.low, a.high, a.total) == (b.exponent, b.first, b.low, b.high, b.total)
    assert torch.equal(a.counts, b.counts)


def test_the_bins_by_hand():
    # [-1, 3] needs bins of 2^-8: with 2^-9 it would take 2,049 of them.
    histogram = of([-1.0, 0.0, 0.0, 1 / 256, 1 / 512, 2.0, 2.001], [3.0])
    assert (histogram.exponent, histogram.first) == (-8, -256)
    filled = {int(j) - 256: int(histogram.counts[j]) for j in histogram.counts.nonzero().flatten()}
    assert filled == {-256: 1, 0: 1, 1: 1, 512: 2, 768: 1}
    assert (histogram.low, histogram.high, histogram.total) == (-1, 3, 8)


@settings(deadline=None)
@given(batches)
def test_the_counts_are_numpys_and_more_than_half_of_the_bins_are_used(parts):
    histogram = of(*parts)
    everything = np.array([value for part in parts for value in part], dtype=np.float32).astype(np.float64)
    assert (histogram.low, histogram.high) == (min(0, everything.min()), max(0, everything.max()))
    assert histogram.total == len(everything)
    edges, counts = histogram.edges_and_counts()
    expected, _ = np.histogram(everything[everything != 0], np.append(edges.numpy()[:-1], edges.numpy()[-1] + 1e-300))
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == (everything != 0).sum()
    reached = math.floor(histogram.high / 2.0**histogram.exponent) - histogram.first
    assert reached < BINS
    assert reached >= BINS // 2 - 1 or histogram.exponent == -126


@settings(deadline=None)
@given(batches, st.randoms())
def test_neither_the_order_nor_the_batches_matter(parts, random):
    together = of([value for part in parts for value in part])
    shuffled = list(parts)
    random.shuffle(shuffled)
    same(of(*shuffled), together)
    merged = Histogram()
    for part in shuffled:
        merged.merge(of(part))
    same(merged, together)


def test_nothing_changes_by_adding_or_merging_nothing():
    histogram = of([1.0, 2.0])
    histogram.add(torch.empty(0, 3))
    histogram.merge(Histogram())
    same(histogram, of([1.0, 2.0]))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_are_refused_and_not_counted(bad):
    histogram = of([1.0])
    with pytest.raises(ValueError, match="Infinite or NaN"):
        histogram.add(torch.tensor([2.0, bad]))
    same(histogram, of([1.0]))


def test_an_empty_histogram_has_no_range():
    with pytest.raises(ValueError, match="without values"):
        Histogram().edges_and_counts()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_and_shape_is_counted(dtype):
    x = torch.linspace(-2, 3, 24).reshape(2, 3, 4).to(dtype)
    histogram = Histogram()
    histogram.add(x.transpose(0, 2))
    same(histogram, of(x.float().flatten().tolist()))


def test_widening_makes_no_new_counts():
    """Small lasting tensors, made anew among large passing ones, took gigabytes at 100 steps."""
    histogram = Histogram()
    counts = histogram.counts
    for scale in (1e-3, 1.0, 1.0, 1e4):
        histogram.add(scale * noise(100))
        assert histogram.counts is counts
    assert counts.sum() == 400
