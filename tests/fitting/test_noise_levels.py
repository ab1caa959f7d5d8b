"""The levels between which schedulers step, against their own steps; and what refining leaves in place."""

import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from tiny_models import noise

from iec.fitting.fine_scheduler import fine_scheduler
from iec.fitting.noise_levels import noise_levels, refined
from iec.runtime import SpacedDDIMScheduler

PLAIN = {"clip_sample": False}
FIRST_ORDER = {
    "DDIM, leading": lambda: DDIMScheduler(**PLAIN),
    "DDIM, leading, offset": lambda: DDIMScheduler(**PLAIN, steps_offset=1, set_alpha_to_one=False),
    "DDIM, trailing": lambda: DDIMScheduler(**PLAIN, timestep_spacing="trailing"),
    "DDIM, scaled linear": lambda: DDIMScheduler(**PLAIN, beta_schedule="scaled_linear", set_alpha_to_one=False),
    "ours, quad": lambda: SpacedDDIMScheduler(spacing="quad"),
    "ours, quad without duplicates": lambda: SpacedDDIMScheduler(spacing="quad", drop_duplicates=True),
    "ours, uniform": lambda: SpacedDDIMScheduler(spacing="uniform"),
    "ours, linspace": lambda: SpacedDDIMScheduler(spacing="linspace"),
    "Euler": EulerDiscreteScheduler,
    "Euler, Karras": lambda: EulerDiscreteScheduler(use_karras_sigmas=True),
    "Euler, trailing": lambda: EulerDiscreteScheduler(timestep_spacing="trailing"),
    "flow matching": FlowMatchEulerDiscreteScheduler,
    "flow matching, shifted": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}
STEPS = 10


def made(name, steps=STEPS):
    scheduler = FIRST_ORDER[name]()
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_step_between_levels_is_the_schedulers_own(name, steps):
    scheduler = made(name, steps)
    levels = noise_levels(scheduler)
    assert list(levels.timesteps) == scheduler.timesteps.tolist()
    x = noise(2, 3, 4, 4) * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1)
    for i, t in enumerate(scheduler.timesteps):
        output = noise(2, 3, 4, 4, seed=i + 1)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        expected = scheduler.step(output, t, x, return_dict=False)[0]
        found = levels.step(i, x, output)
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
        x = expected


@pytest.mark.parametrize("substeps", [1, 2, 5, 12])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_refining_keeps_the_coarse_levels_in_place(name, substeps):
    scheduler = made(name)
    coarse, fine = noise_levels(scheduler), refined(scheduler, substeps)
    firsts = [fine.coarse.index(i) for i in range(STEPS)]
    assert [fine.levels.levels[place] for place in firsts] == list(coarse.levels[:-1])
    assert [fine.levels.timesteps[place] for place in firsts] == list(coarse.timesteps)
    assert fine.levels.levels[-1] == coarse.levels[-1]
    assert len(fine.levels.levels) == len(fine.levels.timesteps) + 1 == len(fine.coarse) + 1
    assert list(fine.coarse) == sorted(fine.coarse)
    assert max(map(fine.coarse.count, range(STEPS))) <= substeps
    levels = fine.levels.levels
    assert all(a >= b for a, b in itertools.pairwise(levels))
    # Where the timestep is the same, so is the level: nothing but the listed steps of no length is repeated.
    repeated = sum(a == b for a, b in itertools.pairwise(levels))
    assert repeated == sum(a == b for a, b in zip(coarse.levels, coarse.levels[1:], strict=False))


@pytest.mark.parametrize("name", [name for name in FIRST_ORDER if name not in ("ours, quad",)])
def test_long_steps_are_refined_as_often_as_they_should(name):
    fine = refined(made(name), 5)
    assert fine.coarse.count(0) == fine.coarse.count(4) == 5


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_levels_of_whole_timesteps_are_those_of_training(name):
    scheduler = made(name)
    fine = refined(scheduler, 4)
    if fine.levels.kind == "flow":
        return
    ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double()
    for t, level, coarse in zip(fine.levels.timesteps, fine.levels.levels, fine.coarse, strict=False):
        if t == int(t) and noise_levels(scheduler).timesteps[coarse] != t:
            assert level == pytest.approx(ratios[int(t)].item(), rel=1e-4)


def test_a_refined_flow_step_has_equal_parts():
    fine = refined(made("flow matching, shifted"), 4)
    levels = torch.tensor(fine.levels.levels, dtype=torch.float64)
    for i in range(STEPS):
        parts = (levels[1:] - levels[:-1])[[k for k, own in enumerate(fine.coarse) if own == i]]
        torch.testing.assert_close(parts, parts[:1].expand_as(parts), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_one_substep_is_the_schedulers_own_step_bit_for_bit(name):
    own, fine = made(name), fine_scheduler(FIRST_ORDER[name](), 1)
    fine.set_timesteps(STEPS)
    assert torch.equal(fine.timesteps, own.timesteps)
    a = b = noise(2, 3, 4, 4) * float(getattr(own, "init_noise_sigma", 1.0))
    for i, t in enumerate(own.timesteps):
        if hasattr(own, "scale_model_input"):
            assert torch.equal(fine.scale_model_input(b, t), own.scale_model_input(a, t))
        output = noise(2, 3, 4, 4, seed=i + 1)
        a = own.step(output, t, a, return_dict=False)[0]
        b = fine.step(output, t, b, return_dict=False)[0]
        assert torch.equal(a, b)


def test_a_ddim_that_strides_past_its_own_timesteps_has_the_levels_of_its_timesteps():
    """Over linspace's timesteps diffusers' DDIM steps by 1000 // T, to other levels than those it evaluates at next."""
    scheduler = DDIMScheduler(**PLAIN, timestep_spacing="linspace")
    scheduler.set_timesteps(10)
    ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double()
    expected = [*ratios[scheduler.timesteps].tolist(), 0.0]
    assert noise_levels(scheduler).levels == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "scheduler", [HeunDiscreteScheduler(), EDMEulerScheduler(), DDPMScheduler()], ids=lambda s: type(s).__name__
)
def test_levels_that_are_not_known_are_refused_in_a_sentence(scheduler):
    scheduler.set_timesteps(STEPS)
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__}.* use DDIMScheduler"):
        noise_levels(scheduler)


def test_a_solver_of_the_variance_preserving_ode_has_its_levels():
    """DPM-Solver++ of order 1 is DDIM."""
    scheduler = DPMSolverMultistepScheduler(solver_order=1)
    scheduler.set_timesteps(5)
    levels, x = noise_levels(scheduler), noise(2, 3)
    for i, t in enumerate(scheduler.timesteps):
        output = noise(2, 3, seed=i)
        expected = scheduler.step(output, t, x).prev_sample
        torch.testing.assert_close(levels.step(i, x, output), expected, rtol=1e-4, atol=1e-5)
        x = expected
