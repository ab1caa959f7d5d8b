"""Dry steps of any scheduler: the same map every time, and nothing changed by it."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from tiny_models import noise

from iec.pipelines.step_map import StepMap, previous_sample, with_previous_sample
from iec.runtime import SpacedDDIMScheduler

from .by_hand import copied, frozen

SCHEDULERS = {
    "DDPM": lambda: DDPMScheduler(clip_sample=False),
    "DDIM": lambda: DDIMScheduler(clip_sample=False),
    "ours": SpacedDDIMScheduler,
    "Euler ancestral": EulerAncestralDiscreteScheduler,
    "DPM-Solver++ 2M": DPMSolverMultistepScheduler,
    "SDE-DPM-Solver++": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "PLMS": lambda: PNDMScheduler(skip_prk_steps=True),
    "PRK": PNDMScheduler,
    "LMS": LMSDiscreteScheduler,
    "Heun": HeunDiscreteScheduler,
    "UniPC": UniPCMultistepScheduler,
}
CLIPPING = {"DDIM": DDIMScheduler, "DDPM": DDPMScheduler}
STEPS = 6


def predict(x, t):
    return torch.tanh(x + torch.as_tensor(t) / 500)


def settings_of(scheduler, generator):
    takes = scheduler.step.__code__.co_varnames
    settings = {"generator": generator} if "generator" in takes else {}
    return {**settings, "eta": 1.0} if "eta" in takes else settings


def started(make):
    scheduler = make()
    scheduler.set_timesteps(STEPS)
    return scheduler, noise(2, 3, 4, 4) * scheduler.init_noise_sigma


@pytest.mark.parametrize("name", SCHEDULERS)
def test_dry_steps_change_nothing_and_the_run_goes_on_as_if_they_had_not_been(name):
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    plain, x = started(SCHEDULERS[name])
    dried, y = started(SCHEDULERS[name])
    for t in plain.timesteps:
        scaled = plain.scale_model_input(x, t)
        torch.manual_seed(8)
        x_next = plain.step(predict(scaled, t), t, x, **settings_of(plain, generators[0])).prev_sample
        e = predict(dried.scale_model_input(y, t), t)
        settings = settings_of(dried, generators[1])
        torch.manual_seed(8)
        step_map = StepMap(dried, dried.step, (e, t, y), settings)
        before = frozen(vars(dried)), generators[1].get_state(), torch.get_rng_state(), y.clone(), e.clone()
        for output in (e, torch.zeros_like(e), 5 * e, e):
            step_map.dry(output)
            assert frozen(vars(dried)) == before[0]
            assert torch.equal(generators[1].get_state(), before[1])
            assert torch.equal(torch.get_rng_state(), before[2])
            assert torch.equal(y, before[3])
            assert torch.equal(e, before[4])
        y = step_map.commit(e).prev_sample
        assert torch.equal(y, x_next)
        x = x_next
    assert frozen(vars(plain)) == frozen(vars(dried))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_dry_step_draws_the_noise_of_the_real_one(name):
    scheduler, x = started(SCHEDULERS[name])
    generator = torch.Generator().manual_seed(3)
    for t in scheduler.timesteps[:3]:
        e = predict(scheduler.scale_model_input(x, t), t)
        step_map = StepMap(scheduler, scheduler.step, (e, t, x), settings_of(scheduler, generator))
        first, second = step_map.dry(e), step_map.dry(e)
        real = step_map.commit(e).prev_sample
        assert torch.equal(first, second)
        assert torch.equal(first, real)
        x = real


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_dry_step_is_the_step_of_a_deep_copy(name):
    scheduler, x = started(SCHEDULERS[name])
    generator = torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        e = predict(scheduler.scale_model_input(x, t), t)
        step_map = StepMap(scheduler, scheduler.step, (e, t, x), settings_of(scheduler, generator))
        rng = torch.get_rng_state()
        twin = copy.deepcopy(scheduler)
        expected = twin.step(0.3 * e, t, x, **settings_of(twin, copied(generator))).prev_sample
        torch.set_rng_state(rng)
        assert torch.equal(step_map.dry(0.3 * e), expected)
        x = step_map.commit(e).prev_sample


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_step_is_affine_in_the_model_output(name):
    scheduler, x = started(SCHEDULERS[name])
    for t in scheduler.timesteps:
        e = predict(scheduler.scale_model_input(x, t), t)
        settings = settings_of(scheduler, torch.Generator().manual_seed(3))
        step_map = StepMap(scheduler, scheduler.step, (e, t, x), settings)
        at_0, at_1, at_e = (step_map.dry(output) for output in (torch.zeros_like(e), torch.ones_like(e), e))
        affine = at_0 + (at_1 - at_0) * e
        scale = max(1.0, at_0.abs().max().item(), at_1.abs().max().item())
        torch.testing.assert_close(at_e / scale, affine / scale, rtol=0, atol=1e-5)
        x = step_map.commit(e).prev_sample


@pytest.mark.parametrize("name", CLIPPING)
def test_a_clipping_step_is_not_affine(name):
    scheduler, x = started(CLIPPING[name])
    t = scheduler.timesteps[0]
    step_map = StepMap(scheduler, scheduler.step, (x, t, x), {"generator": torch.Generator().manual_seed(0)})
    at_0, at_1, at_x = (step_map.dry(output) for output in (torch.zeros_like(x), torch.ones_like(x), x))
    assert (at_x - (at_0 + (at_1 - at_0) * x)).abs().max() > 1e-2


def test_a_list_of_generators_is_put_back():
    scheduler, x = started(DDPMScheduler)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    states = [generator.get_state() for generator in generators]
    t = scheduler.timesteps[0]
    step_map = StepMap(scheduler, scheduler.step, (x, t, x), {"generator": generators})
    dry = step_map.dry(x)
    assert all(torch.equal(g.get_state(), state) for g, state in zip(generators, states, strict=True))
    assert torch.equal(step_map.commit(x).prev_sample, dry)
    assert not torch.equal(generators[0].get_state(), states[0])


def test_the_arguments_may_come_in_any_form():
    scheduler, x = started(DDIMScheduler)
    t, e = scheduler.timesteps[0], 0.1 * x
    expected = scheduler.step(e, t, x, 0.0, return_dict=False)
    for args, kwargs in (
        ((e, t, x, 0.0), {"return_dict": False}),
        ((e, t), {"sample": x, "return_dict": False}),
        ((), {"timestep": t, "model_output": e, "sample": x, "return_dict": False}),
    ):
        step_map = StepMap(scheduler, scheduler.step, args, kwargs)
        assert step_map.output is e
        assert step_map.sample is x
        assert torch.equal(step_map.dry(e), expected[0])
        assert torch.equal(step_map.commit(e)[0], expected[0])


def test_the_state_is_iterated_in_float32_and_the_real_step_keeps_its_dtype():
    scheduler, x = started(DDIMScheduler)
    t, x, e = scheduler.timesteps[0], x.bfloat16(), (0.1 * x).bfloat16()
    step_map = StepMap(scheduler, scheduler.step, (e, t, x), {})
    assert step_map.dtype == torch.float32
    dry = step_map.dry(e)
    assert dry.dtype == torch.float32
    assert torch.equal(dry, scheduler.step(e.float(), t, x.float()).prev_sample)
    assert step_map.commit(e).prev_sample.dtype == torch.bfloat16
    assert StepMap(scheduler, scheduler.step, (e.double(), t, x.double()), {}).dtype == torch.float64


def test_a_failed_dry_step_changes_nothing():
    scheduler, x = started(lambda: PNDMScheduler(skip_prk_steps=True))
    t = scheduler.timesteps[0]
    step_map = StepMap(scheduler, scheduler.step, (x, t, x), {})
    before = frozen(vars(scheduler))
    with pytest.raises(RuntimeError):
        step_map.dry(torch.zeros(2, 3, 5, 5))
    assert frozen(vars(scheduler)) == before


@pytest.mark.parametrize("return_dict", [True, False])
def test_another_previous_sample_takes_its_place(return_dict):
    scheduler, x = started(DDIMScheduler)
    stepped = scheduler.step(x, scheduler.timesteps[0], x, return_dict=return_dict)
    original = stepped[1]
    replaced = with_previous_sample(stepped, x)
    assert previous_sample(replaced) is x
    assert type(replaced) is type(stepped)
    assert replaced[1] is original
