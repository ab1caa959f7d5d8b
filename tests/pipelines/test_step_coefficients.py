"""The affine probe against the closed forms of the schedulers' papers."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from tiny_models import noise

from iec.method.ddim import alpha_pairs, coefficients
from iec.pipelines import IECUnsupportedError, step_coefficients
from iec.runtime import SpacedDDIMScheduler

from .by_hand import assert_same_state, frozen
from .schedulers import CLIPPING, ETA, FLOW_MATCHING, SCHEDULERS

STEPS = 6
X, E = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)


def started(scheduler, steps=STEPS):
    scheduler.set_timesteps(steps)
    return scheduler


def assert_coefficients(found, offset, slope, tolerance=1e-5):
    """`slope` is one number."""
    assert_same_state(found.offset, offset.expand_as(found.offset), tolerance)
    assert_same_state(found.slope, torch.full_like(found.slope, slope), tolerance)


def alphas(scheduler, i):
    """alpha-bar at the timestep and at the next one of `leading` timesteps without an offset."""
    t = scheduler.timesteps[i].item()
    return scheduler.alphas_cumprod[t].item(), scheduler.alphas_cumprod[t - 1000 // STEPS].item()


@pytest.mark.parametrize("i", [0, 2, 4])
def test_ddim(i):
    scheduler = started(DDIMScheduler(clip_sample=False))
    a, p = alphas(scheduler, i)
    found = step_coefficients(scheduler, E, scheduler.timesteps[i], X)
    slope = math.sqrt(1 - p) - math.sqrt(p) * math.sqrt(1 - a) / math.sqrt(a)
    assert_coefficients(found, math.sqrt(p / a) * X, slope)


def test_ddim_with_noise_has_the_noise_in_its_offset():
    scheduler = started(DDIMScheduler(clip_sample=False))
    a, p = alphas(scheduler, 1)
    sigma = math.sqrt((1 - p) / (1 - a) * (1 - a / p))
    z = torch.randn(X.shape, generator=torch.Generator().manual_seed(4))
    found = step_coefficients(
        scheduler, E, scheduler.timesteps[1], X, eta=1.0, generator=torch.Generator().manual_seed(4)
    )
    slope = math.sqrt(1 - p - sigma**2) - math.sqrt(p) * math.sqrt(1 - a) / math.sqrt(a)
    assert_coefficients(found, math.sqrt(p / a) * X + sigma * z, slope)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_ddim_with_another_prediction(prediction):
    scheduler = started(DDIMScheduler(clip_sample=False, prediction_type=prediction))
    a, p = alphas(scheduler, 2)
    angle, previous = math.acos(math.sqrt(a)), math.acos(math.sqrt(p))
    found = step_coefficients(scheduler, E, scheduler.timesteps[2], X)
    if prediction == "v_prediction":  # a rotation of (x, v)
        assert_coefficients(found, math.cos(angle - previous) * X, -math.sin(angle - previous))
    else:
        slope = math.sqrt(p) - math.sqrt(1 - p) / math.sqrt(1 - a) * math.sqrt(a)
        assert_coefficients(found, math.sqrt((1 - p) / (1 - a)) * X, slope)


def test_ours_are_those_of_the_method():
    scheduler = started(SpacedDDIMScheduler(spacing="quad"), 20)
    pairs = alpha_pairs(scheduler.timesteps.tolist(), scheduler.alphas_cumprod, "quad")
    step = coefficients(*pairs[0], 0.0)
    assert_coefficients(step_coefficients(scheduler, E, scheduler.timesteps[0], X), step.A * X, step.B)


def test_ddpm():
    """The posterior mean of x_{t-1} given x_t and the predicted x_0."""
    scheduler = started(DDPMScheduler(clip_sample=False))
    a, p = alphas(scheduler, 1)
    current = a / p
    z = torch.randn(X.shape, generator=torch.Generator().manual_seed(4))
    found = step_coefficients(scheduler, E, scheduler.timesteps[1], X, generator=torch.Generator().manual_seed(4))
    slope = -(1 - current) / math.sqrt(current * (1 - a))
    sigma = math.sqrt((1 - p) / (1 - a) * (1 - current))
    assert_coefficients(found, X / math.sqrt(current) + sigma * z, slope, 1e-4)


def test_euler_steps_in_sigma():
    scheduler = started(EulerDiscreteScheduler())
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(X, t)
        slope = (scheduler.sigmas[i + 1] - scheduler.sigmas[i]).item()
        assert_coefficients(step_coefficients(scheduler, E, t, X), X, slope)
        scheduler.step(E, t, X)


def test_euler_ancestral_steps_down_and_adds_noise():
    scheduler = started(EulerAncestralDiscreteScheduler())
    t = scheduler.timesteps[0]
    scheduler.scale_model_input(X, t)
    sigma, target = scheduler.sigmas[0].item(), scheduler.sigmas[1].item()
    up = math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2)
    z = torch.randn(X.shape, generator=torch.Generator().manual_seed(4))
    found = step_coefficients(scheduler, E, t, X, generator=torch.Generator().manual_seed(4))
    assert_coefficients(found, X + up * z, math.sqrt(target**2 - up**2) - sigma)


def test_flow_matching_steps_in_sigma():
    scheduler = started(FlowMatchEulerDiscreteScheduler(shift=3.0))
    for i, t in enumerate(scheduler.timesteps):
        slope = (scheduler.sigmas[i + 1] - scheduler.sigmas[i]).item()
        assert_coefficients(step_coefficients(scheduler, E, t, X), X, slope)
        scheduler.step(E, t, X)


def test_plms_counts_its_history():
    """Call 0 is DDIM, call 1 redoes its interval with the mean, call 2 takes 3/2 of the new prediction."""
    scheduler = started(PNDMScheduler(skip_prk_steps=True))
    outputs = [noise(2, 3, 4, 4, seed=seed) for seed in (2, 3, 4)]
    slopes = []
    for interval in (0, 1):
        a, p = alphas(scheduler, 2 * interval)
        slopes.append(math.sqrt(1 - p) - math.sqrt(p) * math.sqrt(1 - a) / math.sqrt(a))
        if interval == 0:
            shift = math.sqrt(p / a) * X
        else:
            later = math.sqrt(p / a) * X - slopes[1] / 2 * outputs[0]
    expected = [(shift, slopes[0]), (shift + slopes[0] / 2 * outputs[0], slopes[0] / 2), (later, 1.5 * slopes[1])]
    for i, output in enumerate(outputs):
        t = scheduler.timesteps[i]
        assert_coefficients(step_coefficients(scheduler, output, t, X), *expected[i], 1e-4)
        scheduler.step(output, t, X)


def test_dpm_solver_in_its_first_step_is_of_first_order():
    scheduler = started(DPMSolverMultistepScheduler())
    sigma, target = scheduler.sigmas[0].item(), scheduler.sigmas[1].item()
    a, p = 1 / math.sqrt(1 + sigma**2), 1 / math.sqrt(1 + target**2)
    # D = (x - a sigma e) / a; x' = (s'/s) x - p (exp(-h) - 1) D, with s = a sigma and h the step in log(1 / sigma).
    factor = -p * (target / sigma - 1)
    found = step_coefficients(scheduler, E, scheduler.timesteps[0], X)
    assert_coefficients(found, (p * target / (a * sigma) + factor / a) * X, -factor * sigma, 1e-4)


@pytest.mark.parametrize("name", [*sorted(set(SCHEDULERS) - CLIPPING), *FLOW_MATCHING])
def test_every_step_of_every_scheduler_is_its_coefficients(name):
    scheduler = started({**SCHEDULERS, **FLOW_MATCHING}[name]())
    x = X * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = scheduler.step.__code__.co_varnames
    settings = {"eta": ETA[name]} if name in ETA else {}
    if "generator" in takes:
        settings["generator"] = torch.Generator().manual_seed(3)
    for i, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        e = noise(2, 3, 4, 4, seed=10 + i)
        before = frozen(vars(scheduler))
        found = step_coefficients(scheduler, e, t, x, **settings)
        assert frozen(vars(scheduler)) == before
        assert found.slope.max() - found.slope.min() <= 1e-3 * max(1, found.offset.abs().max())
        x = scheduler.step(e, t, x, **settings).prev_sample
        assert_same_state(found.offset + found.slope * e, x, 1e-4)


@pytest.mark.parametrize("name", sorted(CLIPPING))
def test_a_clipping_step_has_no_coefficients(name):
    scheduler = started(SCHEDULERS[name]())
    with pytest.raises(ValueError, match="not affine"):
        step_coefficients(scheduler, E, scheduler.timesteps[0], X)


def test_a_learned_variance_has_no_coefficients():
    scheduler = started(DDPMScheduler(variance_type="learned_range", clip_sample=False))
    with pytest.raises(ValueError, match="not affine"):
        step_coefficients(scheduler, torch.cat([E, E], 1), scheduler.timesteps[0], X)


def test_a_step_with_other_arguments_is_refused():
    class Other(DDIMScheduler):
        def step(self, prediction, timestep, state):
            return super().step(prediction, timestep, state)

    with pytest.raises(IECUnsupportedError, match="no argument named"):
        step_coefficients(started(Other()), E, 500, X)
