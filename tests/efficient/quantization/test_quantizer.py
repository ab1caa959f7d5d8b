"""The affine quantizer: hand-computed codes, and what every grid must satisfy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import noise

from iec.efficient.quantization.quantizer import (
    Grid,
    dequantize,
    fake_quantize,
    grid_of_range,
    quantize,
    require_bits,
    round_straight_through,
)


def scalar(value):
    return torch.tensor(float(value))


# By hand: [-1, 2] in 2 bits has delta 3 / 3 = 1 and zero point 1, so it holds -1, 0, 1, 2.
TWO_BITS = Grid(scalar(1), scalar(1), 2)


def test_the_codes_by_hand():
    x = torch.tensor([-7.0, -1.0, -0.6, -0.4, 0.0, 0.4, 0.6, 1.4, 1.6, 2.0, 9.0])
    assert quantize(x, TWO_BITS).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert quantize(x, TWO_BITS).dtype == torch.uint8
    assert fake_quantize(x, TWO_BITS).tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 2, 2, 2]


def test_half_is_rounded_to_even():
    # In units of delta: -0.5 -> 0, 0.5 -> 0, 1.5 -> 2.
    assert quantize(torch.tensor([-0.5, 0.5, 1.5]), TWO_BITS).tolist() == [1, 1, 3]


@pytest.mark.parametrize(
    ("low", "high", "bits", "delta", "zero_point"),
    [
        (-1, 2, 2, 1.0, 1),
        (-1, 3, 8, 4 / 255, 64),  # 255 / 4 = 63.75
        (-8, 7, 4, 1.0, 8),
        (1, 3, 2, 1.0, 0),  # widened to [0, 3]
        (-6, -3, 2, 2.0, 3),  # widened to [-6, 0]
        (0, 0, 4, 1.0, 0),
        (5, 5, 2, 5 / 3, 0),
        (-5, -5, 2, 5 / 3, 3),
        (-1e-45, 1e-45, 8, 1.0, 0),  # too narrow for float32 to divide
    ],
)
def test_the_grid_of_a_range_by_hand(low, high, bits, delta, zero_point):
    grid = grid_of_range(scalar(low), scalar(high), bits)
    assert grid.delta.item() == pytest.approx(delta, rel=1e-6)
    assert grid.zero_point.item() == zero_point
    assert grid.bits == bits


def test_one_grid_per_output_channel_by_hand():
    weight = torch.tensor([[-1.0, 2.0], [-10.0, 20.0], [0.0, 0.0]])
    grid = grid_of_range(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), 2)
    assert grid.delta.tolist() == [[1], [10], [1]]
    assert grid.zero_point.tolist() == [[1], [1], [0]]
    x = torch.tensor([[0.6, 7.0], [6.0, 7.0], [0.4, 0.4]])
    assert fake_quantize(x, grid).tolist() == [[1, 2], [10, 10], [0, 0]]


finite = st.floats(-1e6, 1e6, width=32)
bits = st.integers(2, 8)


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=50), bits)
def test_every_value_inside_the_range_is_one_step_away_at_most(values, b):
    x = torch.tensor(values)
    grid = grid_of_range(x.min(), x.max(), b)
    # Half a step, and at the ends up to half a step more, by which rounding the zero point shifts the range.
    error = (fake_quantize(x, grid) - x).abs().max().item()
    assert error <= grid.delta.item() * (1 + 1e-3) + 1e-6 * x.abs().max().item()
    assert fake_quantize(scalar(0), grid).item() == 0


def test_a_quotient_beyond_float32_is_clipped_with_and_without_gradients():
    grid = grid_of_range(scalar(0), scalar(5e-36), 8)  # delta 2e-38: 1e6 / delta is infinite
    x = torch.tensor([1e6, -1e6])
    expected = torch.stack([grid.delta * 255, scalar(0)])
    assert torch.equal(fake_quantize(x, grid), expected)
    with torch.no_grad():
        assert torch.equal(fake_quantize(x, grid), expected)


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=50), finite, finite, bits)
def test_the_short_form_is_dequantize_of_quantize_bit_for_bit(values, a, b, count):
    x, grid = torch.tensor(values), grid_of_range(scalar(min(a, b)), scalar(max(a, b)), count)
    once = fake_quantize(x, grid)
    assert torch.equal(once, dequantize(quantize(x, grid), grid))
    assert len(np.unique(once.numpy())) <= 2**count
    assert torch.equal(fake_quantize(once, grid), once)
    with torch.no_grad():
        assert torch.equal(fake_quantize(x, grid), once)
    assert torch.equal(x, torch.tensor(values))


@settings(deadline=None)
@given(st.lists(finite, min_size=2, max_size=50), bits)
def test_the_order_is_kept(values, b):
    x = torch.tensor(values).sort().values
    assert (fake_quantize(x, grid_of_range(x.min(), x.max(), b)).diff() >= 0).all()


def test_the_gradient_passes_straight_through_where_nothing_is_clipped():
    x = torch.tensor([-5.0, -0.6, 0.3, 1.2, 5.0], requires_grad=True)
    delta, zero_point = scalar(1).requires_grad_(), scalar(1).requires_grad_()
    fake_quantize(x, Grid(delta, zero_point, 2)).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    # d/d delta: the clipped bound (-1, 2), else round(x / delta) - x / delta: -0.4, -0.3, -0.2.
    assert delta.grad.item() == pytest.approx(-1 + 2 - 0.9, abs=1e-6)
    # d/d zero point: -delta at each of the two clipped values.
    assert zero_point.grad.item() == -2


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (1, 3, 1)])
def test_the_gradients_are_those_of_straight_through_rounding(shape):
    x, cotangent = 3 * noise(4, 3, 50), noise(4, 3, 50, seed=1)
    grid = Grid(0.2 + noise(*shape, seed=2).abs(), torch.randint(0, 8, shape).float(), 3)

    def gradients(quantize):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, grid.delta, grid.zero_point)]
        quantize(*leaves).mul(cotangent).sum().backward()
        return [leaf.grad for leaf in leaves]

    def written_out(x, delta, zero_point):
        low = -round_straight_through(zero_point)
        return round_straight_through(x / delta).clamp(low, low + 7) * delta

    own = gradients(lambda x, delta, zero_point: fake_quantize(x, Grid(delta, zero_point, 3)))
    for found, expected in zip(own, gradients(written_out), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert expected.any()


def test_straight_through_rounding_rounds_exactly():
    x = torch.linspace(-300, 300, 100_001, requires_grad=True)
    assert torch.equal(round_straight_through(x), torch.round(x))


def test_a_nan_is_not_hidden():
    assert fake_quantize(torch.tensor([float("nan"), 1.0]), TWO_BITS).isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_is_computed_in_float32(dtype):
    x = torch.linspace(-1, 3, 1001).to(dtype)
    grid = grid_of_range(scalar(-1), scalar(3), 8)
    assert torch.equal(fake_quantize(x, grid), fake_quantize(x.float(), grid).to(dtype))
    assert fake_quantize(x, grid).dtype == dtype


@pytest.mark.parametrize(("count", "error"), [(1, ValueError), (9, ValueError), (0, ValueError), (-4, ValueError)])
def test_bits_outside_2_to_8_are_refused(count, error):
    with pytest.raises(error, match=rf"weights must lie in 2\.\.8, but is {count}\."):
        require_bits(count, "weights")
    with pytest.raises(error, match=r"2\.\.8"):
        grid_of_range(scalar(0), scalar(1), count)


@pytest.mark.parametrize("count", [8.0, True, "8", None])
def test_bits_that_are_no_integer_are_refused(count):
    with pytest.raises(TypeError, match="must be an integer"):
        require_bits(count)
