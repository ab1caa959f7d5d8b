"""DEC against numpy's least squares, and the layer's correction against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import noise, seeded
from torch import nn

from iec.efficient.cachequant.dec import CacheCorrection, QuantizationCorrection, normalized_main
from iec.efficient.cachequant.regression import ChannelRegression
from iec.efficient.quantization.activations import StepQuantizer
from iec.efficient.quantization.layers import QuantizedLayer
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.ranges import search_weight
from iec.method.clock import Clock


def lstsq(x, y):
    """a and b of every channel, from numpy."""
    solutions = []
    for channel in range(x.shape[1]):
        column = x[:, channel].double().numpy().ravel()
        design = np.stack([column, np.ones_like(column)], 1)
        solutions.append(np.linalg.lstsq(design, y[:, channel].double().numpy().ravel(), rcond=None)[0])
    return [torch.tensor(np.array(row), dtype=torch.float32) for row in np.transpose(solutions)]


def pairs(seed, batch=6, channels=3, offset=0.0):
    x = noise(batch, channels, 4, 4, seed=seed) * torch.tensor([1.0, 0.1, 5.0]).view(1, 3, 1, 1) + offset
    y = 0.7 * x + 0.3 * noise(batch, channels, 4, 4, seed=seed + 1) - 2
    return x, y


def fit(*batches):
    regression = ChannelRegression()
    for x, y in batches:
        regression.add(x, y)
    return regression


# The regression


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from([0.0, 3.0, -100.0]))
def test_the_streamed_fit_is_numpys(seed, sizes, offset):
    x, y = pairs(seed, sum(sizes), offset=offset)
    regression = fit(*zip(x.split(sizes), y.split(sizes), strict=True))
    for got, expected in zip(regression.solve(), lstsq(x, y), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_the_fit_by_hand():
    # Channel 0: (0, 1), (2, 5): a = 2, b = 1. Channel 1: (1, 0), (1, 4): x never varies, so a = 1, b = 2 - 1.
    regression = fit((torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])))
    regression.add(torch.tensor([[2.0, 1.0]]), torch.tensor([[5.0, 4.0]]))
    a, b = regression.solve()
    assert a.tolist() == [2, 1]
    assert b.tolist() == [1, 1]


def test_a_large_mean_does_not_hide_a_small_variance():
    x = noise(8, 1, 100).double()
    for mean in (0, 1e4, 1e6):
        a, _ = fit(*zip((x + mean).split(2), (3 * x).split(2), strict=True)).solve()
        assert a.item() == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_a_channel_that_never_varies_is_only_shifted(value):
    x = torch.full((4, 2, 3), value)
    a, b = fit((x, noise(4, 2, 3) + 5)).solve()
    assert a.tolist() == [1, 1]
    torch.testing.assert_close(b, (noise(4, 2, 3) + 5).transpose(0, 1).flatten(1).mean(1) - value)


def test_bad_pairs_and_no_pairs_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        ChannelRegression().add(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="no data"):
        ChannelRegression().solve()
    regression = fit((torch.zeros(0, 3), torch.zeros(0, 3)))
    with pytest.raises(ValueError, match="no data"):
        regression.solve()


# Caching

STEPS, FULL = 6, (0, 3)


def trajectory(seed, batch=5):
    """Features that drift: X_i depends on X_{i-1}, differently in every channel."""
    features = [noise(batch, 3, 4, 4, seed=seed)]
    gain = torch.tensor([0.9, 1.1, 0.5]).view(1, 3, 1, 1)
    for step in range(1, STEPS):
        features.append(gain * features[-1] + 0.2 * step + 0.1 * noise(batch, 3, 4, 4, seed=seed + step))
    return features


def cache_corrected(*runs):
    correction = CacheCorrection(STEPS, FULL)
    for run in runs:
        for step, feature in enumerate(run):
            correction.add(step, feature)
    return correction.solve()


def test_each_cached_step_is_fitted_to_the_full_step_before_it():
    first, second = trajectory(0), trajectory(100, batch=2)
    a, b = cache_corrected(first, second)
    assert a.shape == b.shape == (STEPS, 3)
    for step, source in enumerate([0, 0, 0, 3, 3, 3]):
        if step in FULL:
            assert a[step].tolist() == [1] * 3
            assert b[step].tolist() == [0] * 3
            continue
        x, y = (torch.cat([first[i], second[i]]) for i in (source, step))
        for got, expected in zip((a[step], b[step]), lstsq(x, y), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_it_lowers_the_error_of_the_cached_feature_on_other_trajectories():
    a, b = cache_corrected(*(trajectory(1000 * k) for k in range(3)))
    for seed in (50_000, 60_000, 70_000):
        features = trajectory(seed)
        for step, source in ((1, 0), (2, 0), (4, 3), (5, 3)):
            reused = features[source]
            corrected = a[step].view(1, 3, 1, 1) * reused + b[step].view(1, 3, 1, 1)
            assert (corrected - features[step]).norm() < 0.7 * (reused - features[step]).norm()


@pytest.mark.parametrize("full", [(), (1, 3), (0, 3, 2), (0, 3, 3)])
def test_full_steps_that_are_no_schedule_are_refused(full):
    with pytest.raises(ValueError, match="sorted and begin with 0"):
        CacheCorrection(STEPS, full)


def test_missing_steps_are_refused():
    correction = CacheCorrection(STEPS, FULL)
    with pytest.raises(ValueError, match="step 1 came before that of a full step"):
        correction.add(1, noise(1, 3))
    correction.add(0, noise(1, 3))
    with pytest.raises(ValueError, match="no data"):
        correction.solve()


# Quantization


def split_layer(kind, bits=3):
    layer = seeded(nn.Conv2d(5, 4, 3, padding=1) if kind == "conv" else nn.Linear(5, 4))
    grids = [search_weight(part, bits) for part in torch.split(layer.weight.detach(), [3, 2], 1)]
    # Grids that cut the input at about one standard deviation, so that the output shrinks.
    inputs = [StepQuantizer(Grid(torch.tensor([0.12, 0.15]), torch.tensor([8.0, 7.0]), 4), 2) for _ in range(2)]
    return layer, QuantizedLayer(layer, grids, inputs, split=3)


def at(step, call, x):
    with Clock(2) as clock, torch.no_grad():
        clock.step = step
        return call(x)


def input_of(kind, seed=0, batch=4):
    x = noise(batch, 5, 6, 6, seed=seed) if kind == "conv" else noise(batch, 7, 5, seed=seed)
    axis = 1 if kind == "conv" else -1
    return x, *x.split([3, 2], axis)


def channels_first(kind, x):
    return x if kind == "conv" else x.movedim(-1, 1)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_the_first_part_is_fitted_without_the_bias(kind):
    layer, quantized = split_layer(kind)
    correction = QuantizationCorrection(quantized, layer.weight[:, :3], 2)
    exact, approximate = {}, {}
    for step in range(2):
        _, main, _ = input_of(kind, seed=step)
        at(step, correction.add, main)
        first = nn.functional.conv2d if kind == "conv" else nn.functional.linear
        padding = {"padding": 1} if kind == "conv" else {}
        exact[step] = first(main, layer.weight[:, :3], **padding).detach()
        grid = Grid(quantized.inputs[0].delta[step], quantized.inputs[0].zero_point[step], 4)
        on_grid = (torch.round(main / grid.delta) + grid.zero_point).clamp(0, 15)
        values = (on_grid - grid.zero_point) * grid.delta
        approximate[step] = first(values, quantized.weight()[:, :3], **padding).detach()
    scale, shift = correction.solve()
    for step in range(2):
        expected = lstsq(*(channels_first(kind, tensors[step]) for tensors in (approximate, exact)))
        torch.testing.assert_close(scale[step], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shift[step], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_the_corrected_layer_is_the_sum_of_its_definition_and_nearer_to_the_float_layer(kind):
    layer, quantized = split_layer(kind)
    correction = QuantizationCorrection(quantized, layer.weight[:, :3], 2)
    for seed in range(6):
        for step in range(2):
            _, main, _ = input_of(kind, seed=10 + seed)
            at(step, correction.add, main)
    scale, shift = correction.solve()
    for seed in (0, 1, 2):
        whole, main, rest = input_of(kind, seed=seed, batch=16)
        only_main = torch.cat([main, torch.zeros_like(rest)], 1 if kind == "conv" else -1)
        for step in range(2):
            quantized.set_correction(None, None)
            plain = at(step, quantized, whole)
            bias = layer.bias.detach()
            if kind == "conv":
                bias = bias.view(-1, 1, 1)
            first = at(step, quantized, only_main) - bias
            quantized.set_correction(scale, shift)
            corrected = at(step, quantized, whole)
            a, b = (values[step].view(bias.shape) for values in (scale, shift))
            torch.testing.assert_close(corrected, plain + (a - 1) * first + b)
            exact = at(step, layer, whole)
            alone = at(step, layer, only_main) - bias
            assert (a * first + b - alone).norm() < 0.9 * (first - alone).norm()
            # The error of the rest is not corrected and remains in the sum.
            assert (corrected - exact).norm() < (plain - exact).norm()


def test_a_layer_that_is_not_split_is_refused():
    layer = seeded(nn.Linear(5, 4))
    quantizer = StepQuantizer(Grid(torch.ones(2), torch.zeros(2), 8), 2)
    whole = QuantizedLayer(layer, [search_weight(layer.weight, 8)], [quantizer])
    with pytest.raises(ValueError, match="split"):
        QuantizationCorrection(whole, layer.weight, 2)


@pytest.mark.parametrize(("groups", "width"), [(4, 6), (4, 3), (12, 5), (1, 12)])
def test_the_norm_of_a_concatenation_from_its_main_branch(groups, width):
    norm = seeded(nn.GroupNorm(groups, 12))
    whole = noise(2, 12, 3, 3)
    expected = norm(whole).detach()[:, :width]
    torch.testing.assert_close(normalized_main(norm, whole[:, :width]).detach(), expected)


def test_groups_that_straddle_the_branches_are_refused():
    with pytest.raises(ValueError, match="Groups of 4 channels straddle the main branch of 6"):
        normalized_main(nn.GroupNorm(3, 12), noise(2, 6, 3, 3))
