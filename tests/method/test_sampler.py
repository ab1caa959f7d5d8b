"""The loop over steps: against diffusers and loops written by hand, with noise, in batches, in bytes."""

import itertools
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import iec
from iec.method import IECConfig, NonFiniteError, alphas_cumprod_linear, current_clock, image_generator

from . import reference
from .denoisers import Cached, MixtureDenoiser, Recorded, smooth
from .reference import same_bits


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(count, seed=0):
    return [image_generator(seed, index) for index in range(count)]


def by_hand(x, num_steps, relaxations=(), selected=None, eta=0.0, draws=None):
    """The corrected DDIM loop in the x0-hat form, without tolerance; `draws` gives each step's noise."""
    timesteps = reference.quad(num_steps)
    for i, (timestep, pair) in enumerate(zip(timesteps, reference.pairs(timesteps), strict=True)):
        t, z = torch.full((len(x),), timestep), 0.0 if draws is None else draws[i]
        state = reference.ddim(x, smooth(x, t), *pair, eta, z)
        for relaxation in relaxations if selected is None or i in selected else ():
            state = state + relaxation * (reference.ddim(x, smooth(state, t), *pair, eta, z) - state)
        x = state
    return x


class ConvDenoiser(torch.nn.Module):
    """A small network whose sums over channels and pixels may round differently in different batches."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x, t):
        return 0.5 * x + self.second(torch.tanh(self.first(x) + (t.to(x.dtype) / 1000).view(-1, 1, 1, 1)))


# Against loops written independently


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("relaxations", "steps", "selected"),
    [
        ((), "all", None),
        ((0.5,), "all", None),
        ((1.0, 0.5), "all", None),
        ((0.2, 0.7, 1.1), "first", {0}),
        ((0.5,), "edges:1/4", "edges"),
    ],
    ids=["none", "paper", "released", "first", "edges"],
)
def test_ddim_equals_the_loop_written_by_hand(num_steps, relaxations, steps, selected):
    if selected == "edges":
        selected = {i for i in range(num_steps) if 4 * i < num_steps or 4 * i >= 3 * num_steps}
    x = noise(3, 2, 4)
    config = IECConfig(relaxation=relaxations, num_iterations=len(relaxations), tolerance=0.0, steps=steps)
    expected = by_hand(x, num_steps, relaxations, selected)
    torch.testing.assert_close(iec.sample(smooth, x, num_steps, config=config), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [10, 50])
def test_uniform_ddim_equals_diffusers(eta, num_steps):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, set_alpha_to_one=False, beta_end=0.012
    )
    scheduler.set_timesteps(num_steps)
    x = noise(2, 3, 4, dtype=torch.float32)
    expected, again = x, generators(2)
    for t in scheduler.timesteps:
        z = torch.stack([torch.randn(3, 4, generator=generator) for generator in again])
        eps = smooth(expected, t.expand(2))
        expected = scheduler.step(eps, t, expected, eta=eta, variance_noise=z if eta else None).prev_sample
    result = iec.sample(
        smooth,
        x,
        num_steps,
        spacing="uniform",
        eta=eta,
        generators=generators(2),
        alphas_cumprod=scheduler.alphas_cumprod,
        config=None,
    )
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_the_defaults_are_100_quad_steps_of_the_paper():
    x = noise(2, 3)
    torch.testing.assert_close(iec.sample(smooth, x), by_hand(x, 100, (0.5,)), rtol=0, atol=1e-4)
    exact = IECConfig(tolerance=0.0)
    assert torch.equal(iec.sample(smooth, x), iec.sample(smooth, x, 100, "quad", "ddim", 0.0, None, None, exact))


def test_dropping_duplicates_skips_no_op_steps_alone():
    x = noise(2, 3)
    kept, summary = iec.sample(smooth, x, config=None, drop_duplicates=True, return_summary=True)
    assert summary.num_steps == 96
    torch.testing.assert_close(kept, iec.sample(smooth, x, config=None), rtol=0, atol=1e-12)


def test_many_steps_follow_the_exact_flow_of_a_gaussian_mixture():
    # In one dimension the probability flow keeps quantiles: x_0 is where the data have the quantile that x_T has.
    alphas = alphas_cumprod_linear()
    modes, weights, deviation = np.array([-1.0, 0.5]), np.array([0.3, 0.7]), 0.1
    mixture = MixtureDenoiser(torch.tensor(modes)[:, None], torch.tensor(weights), deviation, alphas)

    def quantile(x, alpha):
        spread = math.sqrt(2 * (alpha * deviation**2 + 1 - alpha))
        return sum(
            weight * 0.5 * math.erfc((math.sqrt(alpha) * mode - x) / spread)
            for mode, weight in zip(modes, weights, strict=True)
        )

    def flow(x):
        low, high, target = -3.0, 3.0, quantile(x, alphas[999].item())
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if quantile(middle, 1.0) < target else (low, middle)
        return low

    x_T = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]
    expected = torch.tensor([[flow(x)] for x in x_T.flatten().tolist()], dtype=torch.float64)
    distance = (expected - torch.tensor(modes)).abs().min(1).values
    assert (distance < 0.35).all()
    for config in (None, IECConfig(tolerance=0.0)):
        errors = [
            (iec.sample(mixture, x_T, num_steps, "linspace", config=config) - expected).abs().mean().item()
            for num_steps in (50, 200, 800)
        ]
        assert errors[2] < 0.005
        assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_flow_of_a_mixture_ends_near_its_modes_in_their_proportions():
    modes = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mixture = MixtureDenoiser(modes, weights, 0.05, alphas_cumprod_linear())
    x = iec.sample(mixture, noise(3000, 2), 300, "linspace", config=None)
    distances = (x[:, None] - modes).norm(dim=-1)
    nearest, mode = distances.min(1)
    assert (nearest < 5 * 0.05).double().mean() > 0.99
    assert nearest.square().mean().sqrt() == pytest.approx(0.05 * 2**0.5, rel=0.1)
    shares = torch.bincount(mode, minlength=3) / len(x)
    torch.testing.assert_close(shares.double(), weights, rtol=0, atol=4 * 0.5 / len(x) ** 0.5)


# No correction, to the last bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        IECConfig(relaxation=0.0),
        IECConfig(relaxation=0.0, num_iterations=3, tolerance=0.0),
        IECConfig(num_iterations=0),
        IECConfig(steps="none"),
        IECConfig(steps=[]),
    ],
    ids=["lambda 0", "lambda 0, K 3", "K 0", "none", "no steps"],
)
def test_without_relaxation_iterations_or_steps_every_bit_is_kept(dtype, config):
    x = noise(3, 4).to(dtype)
    x[:, 0] = -0.0

    def denoiser(x, t):
        return smooth(x, t) * (x != 0)  # +0.0 for a zero, so that -0.0 stays -0.0 through every step

    plain = iec.sample(denoiser, x, 4, config=None)
    assert torch.signbit(plain[:, 0]).all()
    assert same_bits(iec.sample(denoiser, x, 4, config=config), plain)


# Noise


def test_with_eta_every_pass_uses_the_step_s_one_noise_of_each_generator():
    x, num_steps, relaxations = noise(3, 2, 4), 6, (0.5, 0.8, 0.3)
    again = generators(3)
    draws = [
        torch.stack([torch.randn(2, 4, generator=generator) for generator in again]).double() for _ in range(num_steps)
    ]
    used = generators(3)
    config = IECConfig(relaxation=relaxations, num_iterations=3, tolerance=0.0)
    result = iec.sample(smooth, x, num_steps, eta=0.7, generators=used, config=config)
    torch.testing.assert_close(result, by_hand(x, num_steps, relaxations, eta=0.7, draws=draws), rtol=0, atol=1e-11)
    for one, other in zip(used, again, strict=True):  # one draw per sample and step, and none more
        assert torch.equal(one.get_state(), other.get_state())


NUM_DRAWS = 10_000
SPREAD_TOLERANCE = 0.04  # of the deviation of 10,000 draws, whose standard error is 0.7 %


def first_step(eta):
    timesteps = reference.quad(4)
    alpha, alpha_prev = reference.pairs(timesteps)[0]
    A, B = reference.ddim(1.0, 0.0, alpha, alpha_prev, eta), reference.ddim(0.0, 1.0, alpha, alpha_prev, eta)
    return A, B, reference.ddim(0.0, 0.0, alpha, alpha_prev, eta, 1.0)


def corrected_deviation(denoiser, config, eta):
    """The deviation, over draws of z at a fixed x_t, of the state that step 0 hands to step 1."""
    recorded = Recorded(denoiser)
    x = torch.full((NUM_DRAWS, 1), 0.3, dtype=torch.float64)
    iec.sample(recorded, x, 4, eta=eta, generators=generators(NUM_DRAWS), config=config)
    return recorded.input(1, 0).std().item()


@pytest.mark.parametrize(("relaxation", "num_iterations"), [(0.5, 1), (0.5, 3), (0.3, 1)])
def test_a_constant_denoiser_keeps_the_deviation_sigma(relaxation, num_iterations):
    config = IECConfig(relaxation=relaxation, num_iterations=num_iterations, tolerance=0.0, steps="first")
    deviation = corrected_deviation(lambda x, t: torch.ones_like(x), config, eta=0.8)
    assert deviation == pytest.approx(first_step(0.8)[2], rel=SPREAD_TOLERANCE)


@pytest.mark.parametrize("relaxation", [0.5, 0.3])
def test_the_tolerance_on_the_deviation_would_reject_fresh_noise(relaxation):
    A, B, sigma = first_step(0.8)
    z = noise(2, NUM_DRAWS)
    state = A * 0.3 + B + sigma * z[0]
    fresh = (state + relaxation * (A * 0.3 + B + sigma * z[1] - state)).std().item()
    assert fresh == pytest.approx(sigma * math.hypot(1 - relaxation, relaxation), rel=SPREAD_TOLERANCE)
    assert fresh != pytest.approx(sigma, rel=SPREAD_TOLERANCE)


@pytest.mark.parametrize(("gain", "relaxation"), [(1.0, 0.5), (-2.0, 0.5), (3.0, 0.25)])
def test_a_linear_denoiser_scales_the_deviation_by_the_known_factor(gain, relaxation):
    _, B, sigma = first_step(0.8)
    config = IECConfig(relaxation=relaxation, tolerance=0.0, steps="first")
    deviation = corrected_deviation(lambda x, t: gain * x, config, eta=0.8)
    assert abs(relaxation * B * gain) > 2 * SPREAD_TOLERANCE
    assert deviation == pytest.approx(sigma * abs(1 + relaxation * B * gain), rel=SPREAD_TOLERANCE)


def test_the_noise_is_drawn_in_float32_whatever_the_dtype_of_the_image():
    x, states = noise(2, 3).to(torch.bfloat16), []
    for start in (x, x.float()):
        network = ConvDenoiser()  # its parameters are float32, and so is what it sees
        network.forward = Recorded(lambda x, t: torch.zeros_like(x))
        iec.sample(network, start, 2, eta=1.0, generators=generators(2), config=None)
        states.append(network.forward.input(1, 0))
    assert same_bits(states[0], states[1])


def test_an_image_with_eta_depends_on_its_own_generator_alone():
    x = noise(4, 3)
    together = iec.sample(smooth, x, 8, eta=1.0, generators=generators(4))
    for row in range(4):
        alone = iec.sample(smooth, x[row : row + 1], 8, eta=1.0, generators=[image_generator(0, row)])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-9)


def test_the_noise_does_not_depend_on_the_default_dtype():
    x = noise(2, 3, 8)
    expected = iec.sample(smooth, x, 4, eta=1.0, generators=generators(2))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(iec.sample(smooth, x, 4, eta=1.0, generators=generators(2)), expected)
    finally:
        torch.set_default_dtype(before)


# Batches


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize(
    "config", [None, IECConfig(), IECConfig(num_iterations=3, tolerance=3e-3)], ids=["none", "paper", "tolerance"]
)
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_each_image_is_the_same_alone_and_in_a_batch(dtype, tolerance, config, eta):
    denoiser, x = ConvDenoiser().to(dtype), noise(5, 3, 8, 8).to(dtype)
    x = x * torch.tensor([0.1, 0.3, 1, 2, 3], dtype=dtype).view(-1, 1, 1, 1)
    together, summary = iec.sample(
        denoiser, x, 15, eta=eta, generators=generators(5), config=config, return_summary=True
    )
    if config is not None and config.num_iterations == 3:  # some samples froze before others
        frozen = [torch.stack(record.residuals).isnan() for record in summary.steps]
        assert any(step.any() and not step.all(1).any() for step in frozen)
    for row in range(5):
        own = [image_generator(0, row)]
        alone = iec.sample(denoiser, x[row : row + 1], 15, eta=eta, generators=own, config=config)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_the_same_batch_twice_is_the_same_to_the_last_bit(eta):
    denoiser, x = ConvDenoiser(), noise(4, 3, 8, 8, dtype=torch.float32)
    first, second = (iec.sample(denoiser, x, 10, eta=eta, generators=generators(4)) for _ in range(2))
    assert same_bits(first, second)


# Values that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("config", [None, IECConfig()], ids=["plain", "corrected"])
def test_a_state_that_is_not_finite_before_any_correction_names_its_step(bad, config):
    def denoiser(x, t):
        eps = smooth(x, t)
        if current_clock().step == 3 and current_clock().pass_index == 0:
            eps[1, 2] = bad
        return eps

    with pytest.raises(NonFiniteError, match=r"At step 3 \(timestep 200\), 1 of 3 samples") as error:
        iec.sample(denoiser, noise(3, 4), 7, spacing="quad", config=config)
    assert isinstance(error.value, ValueError)
    assert reference.quad(7)[3] == 200


def test_an_image_that_does_not_fit_its_dtype_is_an_error_and_not_infinite():
    x = torch.full((2, 3), 60_000.0, dtype=torch.float16)
    with pytest.raises(NonFiniteError, match="step 0"):  # A = 1 / sqrt(alpha-bar_800) takes it beyond 65,504
        iec.sample(lambda x, t: torch.zeros_like(x), x, 1, config=None)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_correction_that_is_not_finite_is_dropped_for_its_sample_and_step(bad):
    def denoiser(x, t):
        eps = smooth(x, t)
        if current_clock().step == 3 and current_clock().pass_index == 1:
            eps[1, 2] = bad
        return eps

    x = noise(3, 4)
    result, summary = iec.sample(denoiser, x, 7, config=IECConfig(tolerance=0.0), return_summary=True)
    assert [record.samples_fell_back for record in summary.steps] == [[], [], [], [1], [], [], []]
    healthy = by_hand(x, 7, (0.5,))
    torch.testing.assert_close(result[[0, 2]], healthy[[0, 2]], rtol=0, atol=1e-11)
    without_step_3 = by_hand(x, 7, (0.5,), selected={0, 1, 2, 4, 5, 6})
    torch.testing.assert_close(result[1], without_step_3[1], rtol=0, atol=1e-11)
    assert (healthy - without_step_3)[1].abs().max() > 1e-4


# Bad input is refused before any work


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": IECConfig(steps=[2, 5])}, ValueError, "Step 5 was selected"),
        ({"config": IECConfig(steps=[5]), "spacing": "linspace"}, ValueError, r"5 steps \(0 to 4\)"),
        ({"config": IECConfig(steps=[6]), "sampler": "plms"}, ValueError, r"6 steps \(0 to 5\)"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"num_steps": 1001}, ValueError, "num_steps"),
        ({"num_steps": 2.5}, TypeError, "num_steps"),
        ({"num_steps": 7, "spacing": "uniform"}, ValueError, "linspace"),
        ({"spacing": "cosine"}, ValueError, "cosine"),
        ({"sampler": "euler"}, ValueError, "euler"),
        ({"eta": -0.5}, ValueError, "eta"),
        ({"eta": 1.5}, ValueError, "eta"),
        ({"eta": math.nan}, ValueError, "eta"),
        ({"eta": 0.5}, ValueError, "one generator per sample: 2 are needed, but got none"),
        ({"eta": 0.5, "generators": generators(1)}, ValueError, "2 are needed, but got 1"),
        ({"alphas_cumprod": torch.linspace(0.1, 0.9, 1000)}, ValueError, "alphas_cumprod"),
        ({"alphas_cumprod": torch.full((1000,), torch.nan)}, ValueError, "alphas_cumprod"),
        ({"alphas_cumprod": torch.linspace(1.0, 0.0, 1000)}, ValueError, "alphas_cumprod"),
        ({"x_T": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x_T"),
        ({"x_T": torch.zeros(3)}, TypeError, "x_T"),
        ({"x_T": [[0.0]]}, TypeError, "x_T"),
        ({"x_T": torch.zeros(0, 3)}, ValueError, "no sample"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_before_the_first_evaluation(options, error, message):
    calls = []

    def denoiser(x, t):
        calls.append(t)
        return smooth(x, t)

    with pytest.raises(error, match=message):
        iec.sample(denoiser, **{"x_T": noise(2, 3), "num_steps": 5, **options})
    assert calls == []


def test_indices_are_checked_against_the_steps_that_are_left_without_duplicates():
    config = IECConfig(steps=[96])
    iec.sample(smooth, noise(1, 2), 100, config=config)
    with pytest.raises(ValueError, match=r"96 steps \(0 to 95\)"):
        iec.sample(smooth, noise(1, 2), 100, config=config, drop_duplicates=True)


def test_a_denoiser_must_be_callable_and_keep_the_shape():
    with pytest.raises(TypeError, match="callable"):
        iec.sample(3, noise(1, 2))
    with pytest.raises(ValueError, match=r"shape \[1, 4\] for a state of shape \[1, 2\]"):
        iec.sample(lambda x, t: torch.cat([x, x], 1), noise(1, 2))


# What the denoiser is given, and what comes back


def test_the_denoiser_gets_int64_timesteps_and_may_return_an_object_with_sample():
    seen = []

    def denoiser(x, t):
        seen.append((t.dtype, t.tolist()))
        return SimpleNamespace(sample=smooth(x, t))

    x = noise(3, 2)
    result = iec.sample(denoiser, x, 2, config=None)
    assert seen == [(torch.int64, [800] * 3), (torch.int64, [0] * 3)]
    assert torch.equal(result, iec.sample(smooth, x, 2, config=None))


@pytest.mark.parametrize("network", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_is_called_in_its_own_dtype_and_the_image_keeps_that_of_the_noise(network, state):
    seen = set()

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=network))

        def forward(self, x, t):
            seen.add(x.dtype)
            return self.scale * x

    assert iec.sample(Network(), noise(2, 3).to(state), 3).dtype == state
    assert seen == {network}


def test_a_half_precision_state_is_iterated_in_float32():
    x = noise(2, 3).to(torch.bfloat16)
    result = iec.sample(smooth, x, 20, config=None)
    in_float32 = iec.sample(lambda x, t: smooth(x.bfloat16(), t).float(), x.float(), 20, config=None)
    assert torch.equal(result, in_float32.bfloat16())


def test_the_noise_given_is_left_alone_and_no_graph_is_kept():
    x = noise(2, 3).requires_grad_()
    before = x.detach().clone()
    result = iec.sample(smooth, x, 5)
    assert not result.requires_grad
    assert torch.equal(x.detach(), before)


# Any shape, precision, length and setting


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(1, 9),
    st.sampled_from(["quad", "linspace"]),
    st.sampled_from(["ddim", "plms"]),
    st.lists(st.floats(0, 1), max_size=3),
    st.sets(st.integers(0, 8)),
)
def test_shape_dtype_and_evaluations_for_any_setting(shape, dtype, num_steps, spacing, sampler, relaxations, steps):
    calls = []

    def denoiser(x, t):
        calls.append((x.dtype, x.shape, t.shape))
        return smooth(x, t)

    num_calls = num_steps + (sampler == "plms" and num_steps > 1)
    steps = {step for step in steps if step < num_calls}
    config = IECConfig(relaxation=relaxations, num_iterations=len(relaxations), tolerance=0.0, steps=steps)
    x, summary = iec.sample(
        denoiser, noise(*shape).to(dtype), num_steps, spacing, sampler, config=config, return_summary=True
    )
    assert x.dtype == dtype
    assert x.shape == torch.Size(shape)
    assert x.isfinite().all()
    assert summary.corrected == (sorted(steps) if relaxations else [])
    assert len(calls) == summary.full_evaluations == num_calls + len(relaxations) * len(steps)
    assert set(calls) == {(dtype, torch.Size(shape), torch.Size(shape[:1]))}


def test_every_full_evaluation_of_the_paper_doubles_the_cost():
    for fraction, passes in {"1/4": 50, "1/8": 25, "1/10": 20, "1/20": 10}.items():
        config = IECConfig(steps=f"edges:{fraction}")
        recorded = Recorded(smooth)
        _, summary = iec.sample(recorded, noise(1, 2), 100, config=config, return_summary=True)
        assert len(summary.corrected) == passes
        assert summary.skipped == []
        assert len(recorded.calls) == summary.full_evaluations == 100 + passes


# Memory


class LiveBytes(TorchDispatchMode):
    """The bytes of every tensor made inside and still alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0
        self.names = itertools.count()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, out)
        return out

    def note(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.sizes:
            return
        self.sizes[storage.data_ptr()] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, storage.data_ptr())

    def forget(self, pointer):
        self.now -= self.sizes.pop(pointer)


LATENT = torch.zeros(4, 3, 64, 64)


def peak(num_steps=6, config=None, denoiser=lambda x, t: 0.5 * x):
    with LiveBytes() as live:
        iec.sample(denoiser, LATENT + 1, num_steps, config=config)
    return live.peak / LATENT.nbytes


def test_the_meter_counts_live_tensors_and_their_peak():
    with LiveBytes() as live:
        a = LATENT + 1
        b = a.view(-1)
        assert live.now == LATENT.nbytes
        c = a + b.view_as(a)
        del a, b
        assert live.now == LATENT.nbytes
        c.add_(1)
        assert live.now == LATENT.nbytes
        del c
        assert live.now == 0
    assert live.peak == 2 * LATENT.nbytes


def test_the_meter_notices_a_run_that_keeps_its_states():
    kept = []
    assert peak(denoiser=lambda x, t: kept.append(0.5 * x) or kept[-1]) > peak() + 3


@pytest.mark.parametrize("num_iterations", [1, 2, 4])
@pytest.mark.parametrize("steps", ["all", "first", "last"])
def test_correction_needs_at_most_three_latents_more(num_iterations, steps):
    config = IECConfig(num_iterations=num_iterations, tolerance=0.0, steps=steps)
    assert peak(config=config) - peak() <= 3.0


def test_correction_needs_at_most_three_latents_more_when_a_sample_falls_back():
    def spoilt(x, t):
        if current_clock().pass_index == 0:
            return 0.5 * x
        return torch.where(torch.arange(4).view(-1, 1, 1, 1) == 1, torch.nan, x)

    config = IECConfig(num_iterations=2, tolerance=0.0)
    assert peak(config=config, denoiser=spoilt) - peak() <= 3.0 + 1.0  # the denoiser's own second tensor


def test_a_cached_run_keeps_no_older_features():
    alive = []

    def denoiser(x, t):
        eps = Cached(1)(x, t)
        alive.append(weakref.ref(current_clock().storage["deep"]))
        assert sum(feature() is not None for feature in alive) <= 3
        return eps

    iec.sample(denoiser, noise(2, 3), 10, config=IECConfig(num_iterations=3, tolerance=0.0))
    assert len(alive) == 40
