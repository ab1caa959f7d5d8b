"""Timestep sequences and DDIM coefficients against numpy and the x0-hat form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iec.method import alphas_cumprod_linear, coefficients, spaced_timesteps
from iec.method.ddim import Coefficients, alpha_pairs

from . import reference

probabilities = st.floats(1e-4, 0.9999)
values = st.floats(-100, 100)


def test_quad_equals_the_numpy_formula_for_every_number_of_steps():
    for num_steps in range(2, 1001):
        assert spaced_timesteps(num_steps, "quad") == reference.quad(num_steps), num_steps


def test_quad_with_100_steps_has_the_published_vector():
    timesteps = spaced_timesteps(100, "quad")
    assert timesteps[::-1][:14] == [0, 0, 0, 0, 1, 2, 2, 3, 5, 6, 8, 9, 11, 13]
    assert timesteps[:3] == [800, 783, 768]
    assert len(timesteps) == 100
    assert len(set(timesteps)) == 96


def test_quad_with_100_steps_has_four_no_op_pairs():
    pairs = alpha_pairs(spaced_timesteps(100, "quad"), alphas_cumprod_linear())
    assert sum(coefficients(*pair) == Coefficients(1.0, 0.0, 0.0) for pair in pairs) == 4


def test_drop_duplicates_keeps_each_timestep_once_in_order():
    kept = spaced_timesteps(100, "quad", drop_duplicates=True)
    assert kept == sorted(set(reference.quad(100)), reverse=True)
    assert len(kept) == 96


@pytest.mark.parametrize(
    ("num_steps", "lowest", "highest"),
    [(100, [1, 11], 991), (250, [1, 5], 997), (50, [1, 21], 981), (500, [1, 3], 999)],
)
def test_uniform_examples(num_steps, lowest, highest):
    timesteps = spaced_timesteps(num_steps, "uniform")
    assert timesteps[::-1][:2] == lowest
    assert timesteps[0] == highest
    assert len(timesteps) == num_steps
    assert set(np.diff(timesteps)) == {-(1000 // num_steps)}


@pytest.mark.parametrize("num_steps", [3, 99, 501, 1000])
def test_uniform_refuses_what_it_cannot_space_and_names_linspace(num_steps):
    with pytest.raises(ValueError, match="linspace"):
        spaced_timesteps(num_steps, "uniform")


def test_linspace_equals_numpy_for_every_number_of_steps():
    for num_steps in range(2, 1001):
        expected = np.round(np.linspace(0, 999, num_steps)).astype(int)[::-1].tolist()
        assert spaced_timesteps(num_steps, "linspace") == expected, num_steps


@pytest.mark.parametrize(("spacing", "timestep"), [("quad", 800), ("uniform", 1), ("linspace", 999)])
def test_one_step_takes_the_noisiest_timestep_of_its_sequence(spacing, timestep):
    assert spaced_timesteps(1, spacing) == [timestep]


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
@pytest.mark.parametrize("spacing", ["quad", "uniform", "linspace"])
def test_the_number_of_steps_must_lie_in_range(num_steps, spacing):
    with pytest.raises(ValueError, match=rf"1\.\.1000, but is {num_steps}"):
        spaced_timesteps(num_steps, spacing)


@pytest.mark.parametrize("num_steps", [10.0, "10", True, None])
def test_the_number_of_steps_must_be_an_integer(num_steps):
    with pytest.raises(TypeError, match="num_steps must be an integer"):
        spaced_timesteps(num_steps)


def test_an_unknown_spacing_is_named():
    with pytest.raises(ValueError, match=r"'cubic'.*quad, uniform, linspace"):
        spaced_timesteps(10, "cubic")


def test_the_default_alphas_are_those_of_linear_betas():
    np.testing.assert_allclose(alphas_cumprod_linear().numpy(), reference.ALPHAS, rtol=1e-12)
    assert alphas_cumprod_linear().dtype == torch.float64


@pytest.mark.parametrize(("spacing", "final"), [("quad", 1.0), ("linspace", 1.0), ("uniform", None)])
def test_the_last_step_goes_to_the_clean_image_but_in_uniform_to_alpha_0(spacing, final):
    alphas = alphas_cumprod_linear()
    timesteps = spaced_timesteps(10, spacing)
    pairs = alpha_pairs(timesteps, alphas, spacing)
    assert pairs[-1][1] == (alphas[0].item() if final is None else final)
    assert [alpha for alpha, _ in pairs] == alphas[timesteps].tolist()
    assert [previous for _, previous in pairs[:-1]] == alphas[timesteps[1:]].tolist()


@pytest.mark.parametrize(
    ("name", "alphas", "num_steps", "spacing", "highest_a", "lowest_b"),
    [
        ("CIFAR", reference.ALPHAS, 100, "quad", 1.146, -0.146),
        ("ImageNet", reference.scaled_linear(0.0015, 0.0195), 250, "uniform", 1.040, -0.041),
        ("Bedrooms", reference.scaled_linear(0.0015, 0.0195), 100, "uniform", 1.102, -0.102),
        ("Churches", reference.scaled_linear(0.0015, 0.0155), 100, "uniform", 1.080, -0.082),
        ("Stable Diffusion", reference.scaled_linear(0.00085, 0.012), 50, "uniform", 1.123, -0.124),
    ],
)
def test_the_ranges_of_a_and_b_are_those_of_the_specification(name, alphas, num_steps, spacing, highest_a, lowest_b):
    pairs = alpha_pairs(spaced_timesteps(num_steps, spacing), torch.from_numpy(alphas), spacing)
    steps = [coefficients(*pair) for pair in pairs]
    assert max(step.A for step in steps) == pytest.approx(highest_a, abs=1e-3), name
    assert min(step.B for step in steps) == pytest.approx(lowest_b, abs=1e-3), name
    assert min(step.A for step in steps) >= 1
    assert max(step.B for step in steps) <= (-0.010 if name == "ImageNet" else 0)


@given(probabilities, probabilities, st.floats(0, 1), values, values, values)
def test_the_update_equals_the_x0_hat_form(a, b, eta, x, eps, z):
    alpha, alpha_prev = min(a, b), max(a, b)
    step = coefficients(alpha, alpha_prev, eta)
    tensors = [torch.tensor([[value]], dtype=torch.float64) for value in (x, eps, z)]
    expected = reference.ddim(x, eps, alpha, alpha_prev, eta, z)
    assert step.update(*tensors).item() == pytest.approx(expected, rel=1e-9, abs=1e-9 / math.sqrt(alpha))


@given(probabilities, probabilities, st.floats(0, 1))
def test_sigma_is_eta_times_the_posterior_deviation_of_the_forward_process(a, b, eta):
    alpha, alpha_prev = min(a, b), max(a, b)
    # x_t = sqrt(alpha / alpha_prev) x_p + noise, x_p = signal + sqrt(1 - alpha_prev) noise: precisions add.
    beta = 1 - alpha / alpha_prev
    precision = (math.inf if beta == 0 else (1 - beta) / beta) + 1 / (1 - alpha_prev)
    assert coefficients(alpha, alpha_prev, eta).sigma == pytest.approx(eta * precision**-0.5, rel=1e-6, abs=1e-9)


@given(probabilities, st.floats(0, 1))
def test_a_duplicated_timestep_is_exactly_a_no_op(alpha, eta):
    assert coefficients(alpha, alpha, eta) == Coefficients(1.0, 0.0, 0.0)


@pytest.mark.parametrize("eta", [-0.1, 1.001, math.nan, math.inf])
def test_eta_must_lie_between_0_and_1(eta):
    with pytest.raises(ValueError, match="eta must lie in"):
        coefficients(0.5, 0.9, eta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_update_keeps_the_dtype_and_its_inputs(dtype):
    x, eps, z = (torch.full((2, 3), value, dtype=dtype) for value in (1.0, 2.0, 3.0))
    assert Coefficients(1.5, -0.5, 0.25).update(x, eps, z).dtype == dtype
    assert torch.equal(Coefficients(1.5, -0.5, 0.25).update(x, eps, z), torch.full((2, 3), 1.25, dtype=dtype))
    assert (x == 1).all()
    assert (eps == 2).all()
