"""The correction of one step against closed forms: averages, fixed points, contraction rates, tolerance, fallback."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from iec.method import IECConfig, alphas_cumprod_linear, correct

from . import reference
from .denoisers import MixtureDenoiser, smooth

ALPHA, ALPHA_PREV = reference.pairs(reference.quad(20))[0]
A, B = reference.ddim_ab(ALPHA, ALPHA_PREV)
T = torch.tensor([800])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(x_t, denoiser, config, first=None, **options):
    """Correct one DDIM step from x_t, with the update written in the x0-hat form."""

    def update(eps):
        return reference.ddim(x_t, eps, ALPHA, ALPHA_PREV)

    return correct(update(denoiser(x_t) if first is None else first), denoiser, update, config, **options)


class Calls:
    """A denoiser that remembers what it was asked."""

    def __init__(self, denoiser):
        self.denoiser, self.inputs = denoiser, []

    def __call__(self, x):
        self.inputs.append(x.clone())
        return self.denoiser(x)


# Spec 1.2: averages of noise predictions


@given(st.integers(0, 1000), st.sampled_from([(3, 4), (2, 3, 4, 4), (1, 7)]))
def test_one_half_step_is_a_ddim_step_with_the_mean_of_two_predictions(seed, shape):
    x_t = normal(*shape, seed=seed)
    e0 = smooth(x_t, T)
    e1 = smooth(A * x_t + B * e0, T)
    result = run(x_t, lambda x: smooth(x, T), IECConfig(tolerance=0.0))
    torch.testing.assert_close(result.state, A * x_t + B * 0.5 * (e0 + e1), rtol=0, atol=1e-12)


@given(st.integers(0, 1000))
def test_the_released_setting_is_a_ddim_step_with_the_mean_of_the_last_two_predictions(seed):
    x_t = normal(2, 3, seed=seed)
    x0 = A * x_t + B * smooth(x_t, T)
    x1 = A * x_t + B * smooth(x0, T)
    expected = A * x_t + B * 0.5 * (smooth(x0, T) + smooth(x1, T))
    result = run(x_t, lambda x: smooth(x, T), IECConfig(relaxation=(1.0, 0.5), num_iterations=2, tolerance=0.0))
    torch.testing.assert_close(result.state, expected, rtol=0, atol=1e-12)


def test_full_relaxation_replaces_the_prediction():
    x_t = normal(2, 3)
    x0 = A * x_t + B * smooth(x_t, T)
    result = run(x_t, lambda x: smooth(x, T), IECConfig(relaxation=1.0, tolerance=0.0))
    torch.testing.assert_close(result.state, A * x_t + B * smooth(x0, T), rtol=0, atol=1e-12)


@given(st.integers(0, 200), st.lists(st.floats(0, 1.5), min_size=1, max_size=4))
def test_the_carried_output_is_the_one_whose_step_gives_the_state(seed, relaxations):
    x_t = normal(3, 5, seed=seed)
    e0 = smooth(x_t, T)
    config = IECConfig(relaxation=relaxations, num_iterations=len(relaxations), tolerance=0.0)
    result = run(x_t, lambda x: smooth(x, T), config, first=e0, output=e0)
    torch.testing.assert_close(A * x_t + B * result.output, result.state, rtol=0, atol=1e-12)
    assert torch.equal(result.state, run(x_t, lambda x: smooth(x, T), config).state)


def test_the_inputs_are_left_alone():
    x_t, e0 = normal(2, 3), normal(2, 3, seed=1)
    x_prev = A * x_t + B * e0
    copies = [x_prev.clone(), e0.clone()]
    config = IECConfig(num_iterations=3, tolerance=0.0)
    correct(x_prev, lambda x: smooth(x, T), lambda eps: A * x_t + B * eps, config, output=e0)
    assert torch.equal(x_prev, copies[0])
    assert torch.equal(e0, copies[1])


# Linear denoisers: the fixed point and the rate in closed form


@given(
    st.floats(-8, 30),
    st.floats(0, 2, exclude_max=True),
    st.integers(1, 12),
    st.floats(0.1, 10).flatmap(lambda size: st.sampled_from([size, -size])),
)
def test_the_error_of_a_linear_denoiser_shrinks_or_grows_by_the_analytic_factor_each_pass(gain, relaxation, k, x):
    x_t = torch.tensor([[x]], dtype=torch.float64)
    assume(abs(1 - B * gain) > 0.05)
    fixed_point = A * x / (1 - B * gain)
    rate = 1 - relaxation + relaxation * B * gain
    result = run(x_t, lambda x: gain * x, IECConfig(relaxation=relaxation, num_iterations=k, tolerance=0.0))
    error = A * x + B * gain * x - fixed_point
    scale = max(1.0, abs(rate)) ** k * (abs(error) + abs(fixed_point) + 1)
    assert result.state.item() - fixed_point == pytest.approx(rate**k * error, abs=1e-12 * k * scale)


def test_it_converges_to_the_analytic_fixed_point():
    gain, x_t = 3.0, normal(4, 6)
    result = run(x_t, lambda x: gain * x, IECConfig(relaxation=0.5, num_iterations=200, tolerance=0.0))
    torch.testing.assert_close(result.state, A * x_t / (1 - B * gain), rtol=1e-12, atol=0)


def test_the_residuals_shrink_by_the_analytic_rate():
    gain, relaxation, x_t = 3.0, 0.25, normal(1, 6)
    config = IECConfig(relaxation=relaxation, num_iterations=8, tolerance=0.0, tolerance_mode="absolute")
    residuals = torch.stack(run(x_t, lambda x: gain * x, config).residuals).flatten()
    ratios = residuals[1:] / residuals[:-1]
    expected = abs(1 - relaxation + relaxation * B * gain)
    torch.testing.assert_close(ratios, torch.full_like(ratios, expected), rtol=1e-8, atol=0)


def test_it_diverges_beyond_a_rate_of_one_and_a_smaller_relaxation_saves_it():
    gain, x_t = 6 / abs(B), torch.ones(1, 1, dtype=torch.float64)
    fixed_point = A / 7

    def distance(relaxation, k):
        config = IECConfig(relaxation=relaxation, num_iterations=k, tolerance=0.0)
        return abs(run(x_t, lambda x: gain * x, config).state.item() - fixed_point)

    assert distance(0.5, 20) == pytest.approx(2.5**20 * distance(0.5, 0), rel=1e-9)  # |1 - 0.5 - 3| = 2.5
    assert distance(0.1, 20) == pytest.approx(0.3**20 * distance(0.1, 0), abs=1e-12)  # |1 - 0.1 - 0.6| = 0.3
    assert distance(2 / 7, 21) == pytest.approx(distance(2 / 7, 0), rel=1e-9)  # |1 - 2/7 - 12/7| = 1: neither


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("relaxation", [0.3, 0.5, 1.0])
def test_a_matrix_denoiser_follows_the_powers_of_its_iteration_matrix(seed, relaxation):
    gain = normal(5, 5, seed=seed) * 2
    x_t = normal(3, 5, seed=seed + 100)
    config = IECConfig(relaxation=relaxation, num_iterations=7, tolerance=0.0)
    corrected = run(x_t, lambda x: x @ gain.T, config).state.numpy()
    G, x = gain.numpy(), x_t.numpy()
    fixed_point = np.linalg.solve(np.eye(5) - B * G, A * x.T).T
    power = np.linalg.matrix_power((1 - relaxation) * np.eye(5) + relaxation * B * G, 7)
    first = x @ (A * np.eye(5) + B * G).T
    np.testing.assert_allclose(corrected - fixed_point, (first - fixed_point) @ power.T, atol=1e-11)


@pytest.mark.parametrize(("spectral_radius", "converges"), [(0.9, True), (1.1, False)])
def test_a_rotating_denoiser_converges_exactly_when_the_spectral_radius_is_below_one(spectral_radius, converges):
    # Eigenvalues of (1 - l) I + l B G with G = (i w) a rotation: (1 - l) + i l B w, of modulus spectral_radius.
    relaxation = 0.5
    w = math.sqrt(spectral_radius**2 - 0.25) / (relaxation * B)
    gain = torch.tensor([[0.0, -w], [w, 0.0]], dtype=torch.float64)
    x_t = normal(1, 2)
    fixed_point = A * torch.linalg.solve(torch.eye(2, dtype=torch.float64) - B * gain, x_t.T).T
    config = IECConfig(relaxation=relaxation, num_iterations=200, tolerance=0.0)
    first = A * x_t + B * x_t @ gain.T
    distance = (run(x_t, lambda x: x @ gain.T, config).state - fixed_point).norm()
    expected = spectral_radius**200 * (first - fixed_point).norm()
    assert distance.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-13)
    assert (distance < 1e-6) == converges


def test_the_fixed_point_under_a_gaussian_mixture_solves_its_equation():
    alphas = alphas_cumprod_linear()
    modes = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
    mixture = MixtureDenoiser(modes, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), 0.1, alphas)
    t, p = 200, 180
    a, b = reference.ddim_ab(alphas[t].item(), alphas[p].item())
    x_t, steps = normal(50, 2), torch.tensor([t])
    first = a * x_t + b * mixture(x_t, steps)
    result = correct(
        first,
        lambda x: mixture(x, steps),
        lambda eps: a * x_t + b * eps,
        IECConfig(num_iterations=300, tolerance=0.0),
    )
    x = result.state
    torch.testing.assert_close(x, a * x_t + b * mixture(x, steps), rtol=0, atol=1e-13)
    assert (first - x).abs().max() > 1e-3


# Tolerance


@given(st.sampled_from(["relative", "absolute"]), st.floats(1e-6, 1), st.integers(1, 5), st.integers(0, 50))
def test_tolerance_freezes_each_sample_after_its_own_small_update(mode, tolerance, k, seed):
    rng = np.random.default_rng(seed)
    x_t, gains = rng.normal(size=(4, 6)), rng.uniform(-4, 6, size=(4, 1))
    states, residuals, evaluations = [], np.full((k, 4), np.nan), 0
    for row in range(4):  # each sample alone, by hand
        x = A * x_t[row] + B * gains[row] * x_t[row]
        for i in range(k):
            new = x + 0.5 * (A * x_t[row] + B * gains[row] * x - x)
            size = np.sqrt(((new - x) ** 2).sum())
            residuals[i, row] = size if mode == "absolute" else size / (np.sqrt((x**2).sum()) + 1e-12)
            x = new
            evaluations = max(evaluations, i + 1)
            if residuals[i, row] < tolerance:
                break
        states.append(x)
    gain = torch.from_numpy(gains)
    config = IECConfig(num_iterations=k, tolerance=tolerance, tolerance_mode=mode)
    result = run(torch.from_numpy(x_t), lambda x: gain * x, config)
    np.testing.assert_allclose(result.state.numpy(), states, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(torch.stack(result.residuals).numpy(), residuals[:evaluations], rtol=1e-7)
    assert result.evaluations == evaluations


def test_the_relative_and_the_absolute_size_differ_by_the_norm_of_the_state():
    x_t = 100 * normal(1, 50)
    gain = 3.0
    first = (A + B * gain) * x_t
    absolute, relative = (
        run(x_t, lambda x: gain * x, IECConfig(tolerance=0.0, tolerance_mode=mode)).residuals[0]
        for mode in ("absolute", "relative")
    )
    assert absolute.item() == pytest.approx((0.5 * ((A * x_t + B * gain * first) - first)).norm().item(), rel=1e-12)
    assert (absolute / relative).item() == pytest.approx(first.norm().item(), rel=1e-12)


def test_the_update_is_made_before_the_test():
    x_t = normal(2, 3)
    denoiser = Calls(lambda x: 3.0 * x)
    first = (A + 3 * B) * x_t
    result = run(x_t, denoiser, IECConfig(num_iterations=5, tolerance=1e6), first=3 * x_t)
    torch.testing.assert_close(result.state, first + 0.5 * (A * x_t + B * 3 * first - first), rtol=0, atol=1e-12)
    assert len(denoiser.inputs) == result.evaluations == 1


def test_evaluations_stop_only_when_every_sample_has_converged():
    x_t = torch.ones(2, 1, dtype=torch.float64)
    gains = torch.tensor([[0.0], [3.0]], dtype=torch.float64)  # sample 0 is at its fixed point at once
    denoiser = Calls(lambda x: gains * x)
    result = run(x_t, denoiser, IECConfig(num_iterations=3), first=gains * x_t)
    assert len(denoiser.inputs) == 3
    assert result.residuals[0][0] == 0
    assert torch.stack(result.residuals)[1:, 0].isnan().all()
    assert torch.stack(result.residuals)[:, 1].isfinite().all()
    assert result.changed.tolist() == [False, True]
    assert not result.fell_back.any()


def test_tolerance_saves_nothing_with_one_iteration():
    x_t = normal(2, 3)
    tight, loose = (run(x_t, lambda x: 3 * x, IECConfig(tolerance=tolerance)) for tolerance in (0.0, 1e6))
    assert loose.evaluations == tight.evaluations == 1
    assert torch.equal(loose.state, tight.state)


def test_no_iterations_evaluate_nothing():
    x_t = normal(2, 3)
    denoiser = Calls(lambda x: 3 * x)
    result = run(x_t, denoiser, IECConfig(num_iterations=0), first=3 * x_t)
    assert not denoiser.inputs
    assert reference.same_bits(result.state, reference.ddim(x_t, 3 * x_t, ALPHA, ALPHA_PREV))
    assert not result.changed.any()


# Zero relaxation and states that must keep every bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_relaxation_keeps_every_bit_and_still_evaluates(dtype):
    x_prev = torch.tensor([[-0.0, 0.0, 1.0], [-1.0, -0.0, 2.0]], dtype=dtype)
    denoiser = Calls(torch.sin)
    config = IECConfig(relaxation=0.0, num_iterations=3, tolerance=0.0)
    output = torch.full_like(x_prev, -0.0)
    result = correct(x_prev, denoiser, lambda eps: x_prev + eps, config, output=output)
    assert reference.same_bits(result.state, x_prev)
    assert reference.same_bits(result.output, output)
    assert result.evaluations == len(denoiser.inputs) == 3
    assert not result.changed.any()


def test_a_no_op_step_keeps_every_bit_with_residual_zero():
    x_prev = torch.tensor([[-0.0, 3.0]])
    result = correct(x_prev, torch.cos, lambda eps: 1.0 * x_prev + 0.0 * eps, IECConfig())
    assert reference.same_bits(result.state, x_prev)
    assert result.residuals[0].tolist() == [0.0]


# Samples whose correction is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("failing_pass", [0, 1, 2])
def test_a_sample_whose_correction_is_not_finite_falls_back_alone(bad, failing_pass):
    x_t = normal(3, 4)
    passes = []

    def denoiser(x):
        eps = 3 * x
        if len(passes) == failing_pass:
            eps[1, 2] = bad
        passes.append(len(passes))
        return eps

    config = IECConfig(num_iterations=3, tolerance=0.0)
    e0 = 3 * x_t
    result = run(x_t, denoiser, config, first=e0, output=e0)
    healthy = run(x_t, lambda x: 3 * x, config, first=e0, output=e0)
    first = reference.ddim(x_t, e0, ALPHA, ALPHA_PREV)
    assert reference.same_bits(result.state[1], first[1])
    assert reference.same_bits(result.output[1], e0[1])
    assert torch.equal(result.state[[0, 2]], healthy.state[[0, 2]])
    assert torch.equal(result.output[[0, 2]], healthy.output[[0, 2]])
    assert result.fell_back.tolist() == [False, True, False]
    assert result.changed.tolist() == [True, False, True]
    assert result.residuals[failing_pass].isnan().tolist() == [False, True, False]


def test_a_sample_whose_corrected_state_overflows_falls_back_although_its_update_was_finite():
    x_prev = torch.full((1, 3), 10_000.0, dtype=torch.float16)
    target = torch.full_like(x_prev, 40_000)  # 10,000 + 1.9 * 30,000 is beyond 65,504
    result = correct(x_prev, torch.zeros_like, lambda eps: target + eps, IECConfig(relaxation=1.9))
    assert reference.same_bits(result.state, x_prev)
    assert result.fell_back.tolist() == [True]


def test_when_every_sample_fell_back_no_further_pass_is_evaluated():
    denoiser = Calls(lambda x: torch.full_like(x, math.nan))
    x_t = normal(2, 3)
    result = run(x_t, denoiser, IECConfig(num_iterations=4), first=3 * x_t)
    assert len(denoiser.inputs) == 1
    assert result.fell_back.all()


def test_a_frozen_sample_cannot_fall_back_any_more():
    x_t = torch.ones(2, 1, dtype=torch.float64)
    gains = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    passes = []

    def denoiser(x):
        passes.append(x)
        return torch.where(torch.tensor([[len(passes) > 1], [False]]), torch.nan, gains * x)

    result = run(x_t, denoiser, IECConfig(num_iterations=3), first=gains * x_t)
    assert not result.fell_back.any()
    assert result.state[0].item() == A


def test_settle_hears_after_each_pass_which_updates_were_kept():
    x_t = torch.ones(3, 1, dtype=torch.float64)
    gains = torch.tensor([[0.0], [3.0], [3.0]], dtype=torch.float64)
    heard, passes = [], []

    def denoiser(x):
        passes.append(x)
        return torch.where(torch.tensor([[False], [False], [len(passes) == 2]]), torch.nan, gains * x)

    config = IECConfig(num_iterations=3)
    run(x_t, denoiser, config, first=gains * x_t, settle=lambda *masks: heard.append([m.tolist() for m in masks]))
    assert [kept for kept, _ in heard] == [[True, True, True], [False, True, False], [False, True, False]]
    assert [failed for _, failed in heard] == [[False, False, False], [False, False, True], [False, False, False]]


# Batches


@given(st.integers(0, 100), st.sampled_from([(torch.float64, 1e-9), (torch.float32, 1e-3)]), st.integers(1, 3))
def test_each_sample_is_corrected_as_if_it_were_alone(seed, precision, k):
    dtype, tolerance = precision
    x_t = normal(4, 3, 2, seed=seed, dtype=dtype)
    config = IECConfig(num_iterations=k, tolerance=0.02)

    def one(rows):
        return run(x_t[rows], lambda x: smooth(x, T), config)

    together = one(slice(None))
    for row in range(4):
        alone = one(slice(row, row + 1))
        torch.testing.assert_close(alone.state[0], together.state[row], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_state_keeps_its_dtype_and_sizes_are_measured_in_float32_or_better(dtype):
    x_t = normal(2, 3).to(dtype)
    result = run(x_t, torch.sin, IECConfig(num_iterations=2, tolerance=0.0))
    assert result.state.dtype == dtype
    assert result.residuals[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_large_half_precision_state_has_a_finite_size():
    x_prev = torch.full((1, 100_000), 1000.0, dtype=torch.float16)  # its norm, 316228, is beyond float16
    result = correct(x_prev, torch.zeros_like, lambda eps: x_prev + 100, IECConfig(tolerance=0.0))
    assert result.residuals[0].item() == pytest.approx(0.05, rel=1e-3)
