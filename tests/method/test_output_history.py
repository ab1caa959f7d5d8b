"""Differences, terms and histories of outputs, against loops over lists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iec.method.bands import split_bands
from iec.method.output_history import OutputHistory, correction_term, differences, features

LENGTHS = st.integers(1, 5)


def outputs_of(count, shape=(2, 3, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def coefficients_of(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@given(LENGTHS, st.integers(0, 4))
def test_differences_are_the_newest_first_and_only_those_that_exist(count, history):
    outputs = outputs_of(count, (1, 2))
    found = differences(outputs, history)
    assert len(found) == min(history, count - 1)
    for j, difference in enumerate(found):
        assert torch.equal(difference, outputs[count - 1 - j] - outputs[count - 2 - j])


@given(
    LENGTHS,
    st.integers(0, 3),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.sampled_from([(1, 1, 3, 5), (2, 3, 4, 4), (1, 2, 9, 8)]),
)
def test_the_term_is_that_of_a_loop(count, history, bands, biased, shape):
    outputs, weights = outputs_of(count, shape), coefficients_of(history, bands)
    constant = coefficients_of(shape[1]) if biased else None
    expected = torch.zeros(shape, dtype=torch.float64)
    for j in range(history):
        if count - 2 - j < 0:
            continue
        change = outputs[count - 1 - j] - outputs[count - 2 - j]
        parts = split_bands(change) if bands == 3 else [change]
        for band in range(bands):
            expected += weights[j, band] * parts[band]
    if biased:
        for channel in range(shape[1]):
            expected[:, channel] += constant[channel]
    found = correction_term(outputs, weights, constant)
    if found is None:
        assert not biased
        assert min(history, count - 1) == 0
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@given(st.integers(1, 3))
def test_coefficients_without_an_axis_of_bands_are_of_one_band(history):
    outputs, weights = outputs_of(4), coefficients_of(history)
    assert torch.equal(correction_term(outputs, weights), correction_term(outputs, weights[:, None]))


@pytest.mark.parametrize("axis", [1, 2])
def test_a_constant_goes_to_its_axis(axis):
    outputs, constant = outputs_of(1, (2, 3, 3)), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    found = correction_term(outputs, coefficients_of(0, 1), constant, axis)
    for channel in range(3):
        assert (found.select(axis, channel) == constant[channel]).all()


@pytest.mark.parametrize("grid", [None, (2, 3)])
@pytest.mark.parametrize("bands", [1, 3])
def test_equal_outputs_have_no_correction(bands, grid):
    (output,) = outputs_of(1, (2, 3, 8, 8) if grid is None else (2, 6, 8))
    term = correction_term([output, output.clone(), output.clone()], coefficients_of(2, bands), None, 1, grid)
    assert term.abs().max() == 0


def packed_by_hand(image):
    """Flux's order: a token is the 2 x 2 pixels of every channel."""
    _, channels, height, width = image.shape
    tokens = [
        torch.stack([image[:, c, 2 * i + a, 2 * j + b] for c in range(channels) for a in (0, 1) for b in (0, 1)], 1)
        for i in range(height // 2)
        for j in range(width // 2)
    ]
    return torch.stack(tokens, 1)


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_bands_of_packed_tokens_are_those_of_their_image(batch, channels, rows, columns):
    (image,) = outputs_of(1, (batch, channels, 2 * rows, 2 * columns))
    found = features(packed_by_hand(image), 3, (rows, columns))
    for band, expected in zip(found, split_bands(image), strict=True):
        assert torch.equal(band, packed_by_hand(expected))


def test_packing_is_that_of_diffusers():
    from diffusers import FluxPipeline

    (image,) = outputs_of(1, (2, 3, 8, 12))
    packed = FluxPipeline._pack_latents(image, 2, 3, 8, 12)
    assert torch.equal(packed, packed_by_hand(image))
    torch.testing.assert_close(features(packed, 3, (4, 6)).sum(0), packed, rtol=0, atol=1e-12)


# Histories


def added(history, timestep, value, batch=1):
    """What the history holds after an output of that value, as numbers."""
    return [kept.flatten()[0].item() for kept in history.add(timestep, torch.full((batch, 2), float(value)))]


def test_a_history_keeps_one_output_more_than_its_length():
    history = OutputHistory([9.0, 7.0, 4.0, 1.0], 2)
    assert [added(history, t, t) for t in (9.0, 7.0, 4.0, 1.0)] == [[9], [9, 7], [9, 7, 4], [7, 4, 1]]


def test_a_timestep_that_is_listed_twice_counts_once_with_its_latest_output():
    history = OutputHistory([9.0, 4.0, 4.0, 4.0, 0.0, 0.0], 2)
    assert added(history, 9.0, 1) == [1]
    assert [added(history, 4.0, value) for value in (2, 3, 4)] == [[1, 2], [1, 3], [1, 4]]
    assert [added(history, 0.0, value) for value in (5, 6)] == [[1, 4, 5], [1, 4, 6]]


def test_views_of_one_timestep_have_histories_of_their_own():
    history = OutputHistory([9.0, 4.0, 0.0], 1)
    assert [added(history, 9.0, value) for value in (1, 2, 3)] == [[1], [2], [3]]
    assert [added(history, 4.0, value) for value in (10, 20, 30)] == [[1, 10], [2, 20], [3, 30]]
    assert [added(history, 0.0, value) for value in (11, 21, 31)] == [[10, 11], [20, 21], [30, 31]]


def test_views_over_a_grid_that_repeats_a_timestep():
    """Two views, each of which passes the listed timesteps in turn: 4 is listed twice, and called four times."""
    history = OutputHistory([9.0, 4.0, 4.0], 2)
    for value in (1, 2):
        added(history, 9.0, value)
    found = [added(history, 4.0, value) for value in (10, 11, 20, 21)]
    assert found == [[1, 10], [1, 11], [2, 20], [2, 21]]


def test_the_first_timestep_again_begins_anew():
    history = OutputHistory([9.0, 4.0, 0.0], 1)
    for timestep in (9.0, 4.0, 0.0):
        added(history, timestep, timestep)
    assert added(history, 9.0, 5) == [5]
    assert added(history, 4.0, 6) == [5, 6]


@pytest.mark.parametrize("grid", [[9.0, 6.0, 4.0, 0.0], [0.0, 4.0, 6.0, 9.0]])
def test_a_timestep_against_the_direction_begins_anew(grid):
    history = OutputHistory(grid, 1)
    assert added(history, grid[1], 1) == [1]  # a run may begin inside
    assert added(history, grid[2], 2) == [1, 2]
    assert added(history, grid[1], 3) == [3]
    assert added(history, grid[2], 4) == [3, 4]


def test_another_number_of_images_begins_anew():
    history = OutputHistory([9.0, 6.0, 4.0], 2)
    assert added(history, 9.0, 1, batch=2) == [1]
    assert added(history, 6.0, 2, batch=3) == [2]
    assert added(history, 4.0, 3, batch=3) == [2, 3]


def test_a_run_of_one_step_and_one_of_none():
    assert added(OutputHistory([5.0], 1), 5.0, 1) == [1]
    assert added(OutputHistory([], 1), 5.0, 1) == [1]
