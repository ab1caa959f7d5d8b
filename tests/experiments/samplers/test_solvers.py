import copy
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, PNDMScheduler, UniPCMultistepScheduler
from tiny_models import noise, tiny_unet

import iec
from iec.experiments.samplers.grid import distinct_timesteps
from iec.experiments.samplers.heun import HeunScheduler
from iec.experiments.samplers.ipndm import IPNDMScheduler
from iec.experiments.samplers.multistep import deis, dpm_solver, plms, unipc
from iec.experiments.samplers.sampled_with import with_solver
from iec.experiments.samplers.sampling import PLAIN, Sampling
from iec.method.ddim import alphas_cumprod_linear, spaced_timesteps
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler

ALPHAS = alphas_cumprod_linear()


def run(scheduler, num_steps, denoiser, x):
    scheduler.set_timesteps(num_steps)
    labels = []
    for t in scheduler.timesteps:
        labels.append(int(t))
        x = scheduler.step(denoiser(x, t), t, x).prev_sample
    return x, labels


def linear(x, t, alphas=ALPHAS):
    """The exact noise prediction of data N(0, 0.3^2): sqrt(1-a) x / (0.09 a + 1 - a)."""
    alpha = alphas[int(t)]
    return ((1 - alpha).sqrt() / (0.09 * alpha + 1 - alpha)) * x


def exact_flow(x, first, last=None, alphas=ALPHAS):
    """Where the probability flow of N(0, 0.3^2) takes x from timestep `first` to `last`; None: to a clean image."""
    start, end = (torch.tensor(1.0) if t is None else alphas[t] for t in (first, last))
    return x * ((0.09 * end + 1 - end) / (0.09 * start + 1 - start)).sqrt()


def test_a_distinct_grid_keeps_every_timestep_that_does_not_repeat():
    assert distinct_timesteps(20, "quad") == spaced_timesteps(20, "quad")
    assert distinct_timesteps(30, "linspace") == spaced_timesteps(30, "linspace")
    found, plain = distinct_timesteps(100, "quad"), spaced_timesteps(100, "quad")
    assert len(set(plain)) < 100 == len(set(found)) == len(found)
    assert found[:60] == plain[:60]
    assert found == sorted(found, reverse=True)
    assert found[-4:] == [3, 2, 1, 0]


def test_heun_is_the_mean_of_both_ends_written_by_hand():
    x = noise(2, 3, 4, 4, dtype=torch.float64)
    found, labels = run(HeunScheduler(), 7, linear, x)
    timesteps = spaced_timesteps(4, "quad")
    expected = x
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, b = ALPHAS[t], 1.0 if following is None else ALPHAS[following]
        eps = linear(expected, t)

        def to(eps, start=expected, a=a, b=b):
            return b**0.5 * (start - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps

        if following is not None:
            eps = 0.5 * (eps + linear(to(eps), following))
        expected = to(eps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    first, *rest = timesteps
    assert labels == [first, *(t for t in rest for _ in range(2))]


def test_heun_is_iec_but_for_the_label():
    # With a denoiser that ignores its label, Heun and relaxation 0.5 make the same step (anchors 0.1), except that
    # IEC also corrects the last one.
    x, t_free = noise(1, 3, 4, 4, dtype=torch.float64), lambda x, t: torch.tanh(x)
    found, _ = run(HeunScheduler(), 7, t_free, x)
    config = iec.IECConfig(steps=[0, 1, 2])
    torch.testing.assert_close(found, iec.sample(t_free, x, num_steps=4, config=config), rtol=1e-6, atol=1e-6)


def test_heun_is_of_second_order():
    x = noise(1, 3, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (50, 100):
        found, labels = run(HeunScheduler(spacing="linspace"), 2 * steps - 1, linear, x)
        errors.append((found - exact_flow(x, labels[0])).norm())
    assert errors[0] / errors[1] > 3.0


@pytest.mark.parametrize("even", [2, 4])
def test_heun_refuses_an_even_number_of_evaluations(even):
    with pytest.raises(ValueError, match="odd number"):
        HeunScheduler().set_timesteps(even)
    with pytest.raises(ValueError, match=r"odd number|at least 3"):
        Sampling("heun").require_steps(even)


@pytest.mark.parametrize(
    ("make", "theirs"),
    [
        (dpm_solver, DPMSolverMultistepScheduler),
        (unipc, UniPCMultistepScheduler),
        (deis, DEISMultistepScheduler),
    ],
)
def test_a_multistep_solver_on_diffusers_own_grid_is_diffusers_own(monkeypatch, make, theirs):
    settings = {} if make is dpm_solver else {"solver_order": 3}
    reference = theirs(**settings)
    reference.set_timesteps(9)
    # DEIS's grid has one timestep more, at which it ends.
    own = [*(int(t) for t in reference.timesteps), *([0] if make is deis else [])]
    monkeypatch.setattr("iec.experiments.samplers.multistep.distinct_timesteps", lambda *a: own)
    x = noise(1, 3, 4, 4)
    expected, _ = run(theirs(**settings), 9, linear, x)
    found, _ = run(make("quad"), 9, linear, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def log_rho_step(x, eps, steps):
    """DEIS by quadrature: x / sqrt(alpha-bar) moves by the integral over rho = sqrt(1 / alpha-bar - 1) of the
    polynomial in log rho through the latest predictions `eps`, newest first; steps: where they are, and the end.
    """
    (*nodes, end) = (float((1 / ALPHAS[t] - 1).sqrt()) for t in steps)
    points, weights = np.polynomial.legendre.leggauss(40)
    # Over log rho, d rho = rho d log rho.
    low, high = np.log(nodes[0]), np.log(end)
    logs = low + (high - low) * (points + 1) / 2
    total = 0
    for j, value in enumerate(eps):
        basis = np.prod([(logs - np.log(c)) / np.log(nodes[j] / c) for i, c in enumerate(nodes) if i != j], axis=0)
        total = total + float((weights * basis * np.exp(logs)).sum() * (high - low) / 2) * value
    return ALPHAS[steps[-1]].sqrt() * (x / ALPHAS[steps[0]].sqrt() + total)


@pytest.mark.parametrize("num_steps", [9, 18])
def test_deis_integrates_the_polynomial_in_the_logarithm_of_the_noise(num_steps):
    x = noise(2, 3, 4, 4, dtype=torch.float64)
    found, labels = run(deis("quad"), num_steps, linear, x)
    grid = distinct_timesteps(num_steps + 1, "quad")
    assert labels == grid[:-1]
    assert grid[-1] == 0
    expected, eps = x, []
    for i, t in enumerate(grid[:-1]):
        # Below 15 steps, the last two are of lower orders.
        order = min(3, i + 1, num_steps - i if num_steps < 15 else 3)
        eps = [linear(expected, t), *eps]
        expected = log_rho_step(expected, eps[:order], [*grid[i::-1][:order], grid[i + 1]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_deis_comes_to_the_exact_flow():
    x = noise(1, 3, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (10, 20, 40):
        found, labels = run(deis("quad"), steps, linear, x)
        errors.append((found - exact_flow(x, labels[0], 0)).norm() / x.norm())
    assert errors[0] / errors[1] > 4.0
    assert errors[1] / errors[2] > 4.0


@pytest.mark.parametrize("spacing", ["quad", "uniform", "linspace"])
def test_ipndm_extrapolates_the_predictions_over_ddims_steps_written_by_hand(spacing):
    x = noise(2, 3, 4, 4, dtype=torch.float64)
    found, labels = run(IPNDMScheduler(spacing=spacing), 10, linear, x)
    assert labels == spaced_timesteps(10, spacing)
    final = ALPHAS[0] if spacing == "uniform" else 1.0
    expected, eps = x, []
    for i, t in enumerate(labels):
        eps.append(linear(expected, t))
        if i == 0:
            combined = eps[0]
        elif i == 1:
            combined = (3 * eps[1] - eps[0]) / 2
        else:
            combined = (23 * eps[i] - 16 * eps[i - 1] + 5 * eps[i - 2]) / 12
        a, b = ALPHAS[t], ALPHAS[labels[i + 1]] if i < 9 else final
        clean = (expected - (1 - a) ** 0.5 * combined) / a**0.5
        expected = b**0.5 * clean + (1 - b) ** 0.5 * combined
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_ipndm_repeats_no_timestep_and_can_be_run_again():
    scheduler, x = IPNDMScheduler(), noise(1, 3, 4, 4)
    found, labels = run(scheduler, 100, linear, x)
    assert labels == distinct_timesteps(100, "quad")
    assert torch.equal(run(scheduler, 100, linear, x)[0], found)


def test_ipndm_is_of_third_order_where_the_noise_falls_evenly():
    # The rule supposes steps of one length in sqrt(1 / alpha-bar - 1); the last one is next to nothing.
    alphas = 1 / (1 + (5 * (torch.arange(1025, dtype=torch.float64) + 1e-6) / 1024) ** 2)
    betas = (1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])).tolist()
    x = noise(1, 3, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (33, 129):
        scheduler = IPNDMScheduler(num_train_timesteps=1025, trained_betas=betas, spacing="linspace")
        found, labels = run(scheduler, steps, partial(linear, alphas=alphas), x)
        errors.append((found - exact_flow(x, labels[0], alphas=alphas)).norm())
    assert errors[0] / errors[1] > 4**3


@pytest.mark.parametrize("make", [dpm_solver, unipc, deis])
@pytest.mark.parametrize("spacing", ["quad", "linspace"])
def test_multistep_solvers_run_on_the_grid_and_beat_ddim(make, spacing):
    x = noise(1, 3, 4, 4, dtype=torch.float64)
    found, labels = run(make(spacing), 30, linear, x)
    grid = distinct_timesteps(31, "quad")[:-1] if make is deis else distinct_timesteps(30, "quad")
    assert (labels == grid) == (spacing == "quad")
    truth = exact_flow(x, labels[0], 0 if make is deis else None)
    plain, _ = run(SpacedDDIMScheduler(spacing=spacing), 30, linear, x)
    assert (found - truth).norm() < 0.5 * (plain - truth).norm()


def test_many_steps_are_finite():
    for make in (dpm_solver, unipc, deis):
        found, _ = run(make("quad"), 200, linear, noise(1, 3, 4, 4))
        assert torch.isfinite(found).all()


def test_plms_makes_as_many_evaluations_as_asked_for():
    x = noise(1, 3, 4, 4)
    expected, labels = run(PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True), 10, linear, x)
    found, ours = run(plms("quad"), 11, linear, x)
    assert len(ours) == 11
    assert ours == labels
    assert torch.equal(found, expected)


@pytest.mark.parametrize("solver", ["heun", "dpm++2m", "unipc", "deis", "ipndm", "plms"])
def test_a_pipeline_with_a_solver_has_the_models_noise_schedule(solver):
    pipe = UnconditionalPipeline(tiny_unet(), SpacedDDIMScheduler(beta_end=0.01, spacing="linspace"))
    own = with_solver(pipe, Sampling(solver))
    assert own.unet is pipe.unet
    assert own.scheduler.config.beta_end == 0.01
    copied = copy.deepcopy(own.scheduler)
    copied.set_timesteps(7)
    assert len(copied.timesteps) == 7
    if solver != "plms":
        assert copied.config.spacing == "linspace"
    assert with_solver(pipe, PLAIN) is pipe


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"solver": "euler"}, "Unknown solver"), ({"epsilon_scale": 0}, "positive"), ({"time_shift": -1}, "negative")],
)
def test_bad_samplings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**settings)


@pytest.mark.parametrize(("solver", "name", "fewest"), [("deis", "DEIS", 3), ("ipndm", "iPNDM", 2)])
def test_fewer_evaluations_than_a_solver_needs_are_refused(solver, name, fewest):
    Sampling(solver).require_steps(fewest)
    with pytest.raises(ValueError, match=f"^{name} needs at least {fewest} evaluations, but got {fewest - 1}.$"):
        Sampling(solver).require_steps(fewest - 1)


def test_a_sampling_says_what_it_is():
    assert PLAIN.describe(20) == "T=20"
    assert Sampling("heun").describe(39) == "Heun 39 evaluations"
    assert Sampling(epsilon_scale=1.01, time_shift=40).describe(20) == "T=20, epsilon / 1.01, time shift 40"
    assert asdict(Sampling("unipc")).items() <= Sampling("unipc").to_dict().items()
    assert "diffusers" in Sampling("unipc").to_dict()
    assert "diffusers" in Sampling("deis").to_dict()
    for ours in ("heun", "ipndm"):
        assert "diffusers" not in Sampling(ours).to_dict()
