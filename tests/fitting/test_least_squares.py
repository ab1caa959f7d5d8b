"""The normal equations, against least squares with all matrices written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iec.fitting.least_squares import NormalEquations


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(samples, channels, features, seed=0):
    """y, the slope and the features of some samples [B, C, 2, 3]."""
    shape = (samples, channels, 2, 3)
    return (
        noise(*shape, seed=seed),
        noise(*shape, seed=seed + 1),
        [noise(*shape, seed=seed + 2 + k) for k in range(features)],
    )


def columns(slope, features, constants):
    """The matrix of which theta combines the columns."""
    found = [(slope * feature).flatten() for feature in features]
    for channel in range(slope.shape[1] if constants else 0):
        only = torch.zeros_like(slope)
        only[:, channel] = slope[:, channel]
        found.append(only.flatten())
    return torch.stack(found, 1).numpy()


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 3), st.booleans(), st.integers(0, 50))
def test_the_solution_is_that_of_least_squares(samples, channels, features, constants, seed):
    if not features and not constants:
        return
    y, slope, parts = problem(samples, channels, features, seed)
    equations = NormalEquations(features, channels if constants else 0)
    equations.add(y, slope, parts)
    expected = np.linalg.lstsq(columns(slope, parts, constants), y.flatten().numpy(), rcond=None)[0]
    np.testing.assert_allclose(equations.solve(ridge=0.0), expected, rtol=1e-8, atol=1e-10)


@given(st.integers(1, 3), st.booleans(), st.floats(1e-4, 1.0))
def test_the_ridge_is_relative_to_every_column(features, constants, ridge):
    """As if each column had a further row, of its own norm times the root of the ridge, with the target 0."""
    y, slope, parts = problem(3, 2, features)
    equations = NormalEquations(features, 2 if constants else 0)
    equations.add(y, slope, parts)
    matrix = columns(slope, parts, constants)
    further = np.diag(np.sqrt(ridge) * np.linalg.norm(matrix, axis=0))
    target = np.concatenate([y.flatten().numpy(), np.zeros(matrix.shape[1])])
    expected = np.linalg.lstsq(np.concatenate([matrix, further]), target, rcond=None)[0]
    np.testing.assert_allclose(equations.solve(ridge), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_batches_add_up_and_the_channels_may_lie_on_any_axis(axis):
    y, slope, parts = problem(5, 3, 2)

    def moved(tensor):
        return tensor.movedim(1, axis)

    whole, split = NormalEquations(2, 3), NormalEquations(2, 3)
    whole.add(y, slope, parts)
    for rows in (slice(0, 2), slice(2, 5)):
        split.add(moved(y[rows]), moved(slope[rows]), [moved(part[rows]) for part in parts], axis)
    torch.testing.assert_close(split.gram, whole.gram, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split.solve(), whole.solve(), rtol=1e-12, atol=1e-12)


def test_what_no_sample_showed_is_0():
    y, slope, parts = problem(3, 2, 1)
    equations = NormalEquations(2, 2)
    slope[:, 1] = 0
    equations.add(y, slope, parts)  # the second feature does not exist yet, and nothing moves the second channel
    theta = equations.solve(ridge=0.0)
    assert theta[1] == theta[3] == 0
    matrix = columns(slope, parts, True)[:, :2]
    expected = np.linalg.lstsq(matrix, y.flatten().numpy(), rcond=None)[0]
    np.testing.assert_allclose(theta[[0, 2]], expected, rtol=1e-8)


def test_a_step_that_no_output_moves_has_no_numbers():
    equations = NormalEquations(1, 2)
    equations.add(noise(2, 2, 2), torch.zeros(2, 2, 2), [noise(2, 2, 2)])
    assert torch.equal(equations.solve(), torch.zeros(3, dtype=torch.float64))


def test_nothing_to_fit_is_nothing():
    equations = NormalEquations(0)
    equations.add(noise(2, 2, 2), noise(2, 2, 2), [])
    assert equations.solve().shape == (0,)


def test_single_precision_is_summed_in_double():
    y, slope, parts = problem(4, 2, 1)
    y, slope, parts = 1e4 + y.float(), 1 + slope.float(), [part.float() for part in parts]
    equations = NormalEquations(1, 2)
    equations.add(y, slope, parts)
    matrix = columns(slope.double(), [part.double() for part in parts], True)
    expected = np.linalg.lstsq(matrix, y.double().flatten().numpy(), rcond=None)[0]
    np.testing.assert_allclose(equations.solve(ridge=0.0), expected, rtol=1e-6)
