"""Stable Diffusion with DeepCache, guided and not, corrected and not, against the loop written out."""

from itertools import product

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from tiny_models import noise, recorded_inputs, seeded

import iec
from iec.efficient import DeepCacheConfig, apply, remove

from .loops import corrected_loop
from .stable_diffusion import PROMPTS, Guided, ddim, draw, pipe_of, plms

STEPS, INTERVAL, BRANCH = 6, 3, 1
FULL = range(0, STEPS, INTERVAL)


def stepper(steps=STEPS):
    """The timesteps of DDIM, and its step from any of them."""
    scheduler = ddim()
    scheduler.set_timesteps(steps)
    return scheduler.timesteps, lambda i, x, e: scheduler.step(e, scheduler.timesteps[i], x).prev_sample


def cached_pipe(scheduler=None, interval=INTERVAL, branch=BRANCH):
    pipe = pipe_of(ddim() if scheduler is None else scheduler)
    apply(pipe, DeepCacheConfig(interval, branch))
    return pipe


@pytest.mark.parametrize(("scale", "branch"), product([3.0, 1.0], range(4)))
def test_a_cached_pipeline_equals_the_loop_bit_for_bit(scale, branch):
    model = Guided(pipe_of(ddim()), branch, scale)
    expected = corrected_loop(model, noise(2, 4, 8, 8), *stepper(), FULL)
    pipe = cached_pipe(branch=branch)
    got = draw(pipe, STEPS, scale)
    assert torch.equal(got, expected)
    remove(pipe)
    plain = draw(pipe, STEPS, scale)
    assert torch.equal(plain, draw(pipe_of(ddim()), STEPS, scale))
    assert (plain - got).abs().max() > 1e-4
    apply(pipe, DeepCacheConfig(1, branch))
    assert torch.equal(draw(pipe, STEPS, scale), plain)


@pytest.mark.parametrize("scale", [3.0, 1.0])
@pytest.mark.parametrize("scheduler", [plms, ddim])
def test_latents_of_any_size(scheduler, scale):
    latents = noise(2, 4, 9, 11)
    settings = {"latents": latents, "height": 72, "width": 88}
    plain = draw(pipe_of(scheduler()), STEPS, scale, **settings)
    assert torch.equal(draw(cached_pipe(scheduler(), 1), STEPS, scale, **settings), plain)
    cached = draw(cached_pipe(scheduler()), STEPS, scale, **settings)
    assert cached.shape == latents.shape
    assert not torch.equal(cached, plain)


@pytest.mark.parametrize(
    ("scale", "policy", "cached_steps"), product([3.0, 1.0], ["refresh", "bypass", "reuse"], [False, True])
)
def test_a_corrected_cached_pipeline_equals_the_loop(scale, policy, cached_steps):
    config = iec.IECConfig(cache=policy, cached_steps=cached_steps, tolerance=0.0)
    model = Guided(pipe_of(ddim()), BRANCH, scale)
    loops = {
        name: corrected_loop(model, noise(2, 4, 8, 8), *stepper(), FULL, (0.5,), name, cached_steps)
        for name in ("refresh", "bypass", "reuse")
    }
    pipe = cached_pipe()
    with iec.enabled(pipe, config):
        got, summary = draw(pipe, STEPS, scale), iec.summary(pipe)
    torch.testing.assert_close(got, loops[policy], rtol=1e-5, atol=1e-5)
    assert (loops["refresh"] - loops["bypass"]).abs().max() > 1e-3
    assert summary.corrected == (list(range(STEPS)) if cached_steps else list(FULL))
    at_cached = 4 if cached_steps else 0
    assert summary.full_evaluations == 4 + (0 if policy == "reuse" else at_cached)
    assert summary.cached_evaluations == 4 + (at_cached if policy == "reuse" else 0)


@pytest.mark.parametrize("scheduler", [plms, ddim])
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_the_papers_correction_runs_at_full_steps_only(scheduler, scale):
    pipe = cached_pipe(scheduler())
    cached = draw(pipe, STEPS, scale)
    for policy in ("bypass", "reuse"):
        with iec.enabled(pipe, iec.IECConfig(relaxation=0.0, cache=policy)):
            assert torch.equal(draw(pipe, STEPS, scale), cached)
    with iec.enabled(pipe):
        assert not torch.equal(draw(pipe, STEPS, scale), cached)
        calls = STEPS + (scheduler is plms)  # PLMS makes one call more
        assert iec.summary(pipe).corrected == list(range(0, calls, INTERVAL))


def test_an_image_does_not_depend_on_its_batch_mates():
    pipe = cached_pipe()
    together = draw(pipe, STEPS)
    settings = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    for i, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, latents=noise(2, 4, 8, 8)[i : i + 1], **settings).images
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-4)


def test_a_controlnet_pipeline_runs_cached():
    plain = pipe_of(ddim())
    controlnet = seeded(ControlNetModel.from_unet(plain.unet), 3)
    pipe = StableDiffusionControlNetPipeline(**plain.components, controlnet=controlnet, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings = {"image": noise(2, 3, 64, 64).sigmoid()}
    expected = draw(pipe, 4, **settings)
    assert not torch.equal(expected, draw(pipe, 4, **settings, controlnet_conditioning_scale=0.0))
    apply(pipe, DeepCacheConfig(1))
    assert torch.equal(draw(pipe, 4, **settings), expected)
    apply(pipe, DeepCacheConfig(2))
    cached = draw(pipe, 4, **settings)
    assert torch.isfinite(cached).all()
    assert not torch.equal(cached, expected)


def test_a_model_that_cannot_be_cached_is_refused_before_anything_runs():
    pipe = pipe_of(ddim())
    with pytest.raises(ValueError, match="Branch 4 does not exist: this UNet has branches 0 to 3"):
        apply(pipe, DeepCacheConfig(2, 4))
    apply(pipe, DeepCacheConfig(9))
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match="9 is longer than the run of 6"):
        draw(pipe, STEPS)
    assert inputs == []
