"""Every scheduler in a whole Stable Diffusion pipeline with guidance, bit for bit against the loop written by hand."""

import inspect
from functools import cache

import pytest
import torch
from diffusers import PNDMScheduler
from tiny_models import recorded_inputs

import iec

from .by_hand import assert_same_state, corrected_run, frozen
from .schedulers import CLIPPING, ETA, NOISY, SCHEDULERS
from .tiny_diffusers import generators, latents, prompts, sd_pipe, sd_unet

STEPS, SCALE, K = 5, 3.0, 2
CONFIG = iec.IECConfig(relaxation=0.5, num_iterations=K, tolerance=0.0)


def draw(pipe, name, start=None, generator=None, **settings):
    start = latents() if start is None else start
    generator = generators(len(start)) if generator is None else generator
    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent", **settings}
    # The embeddings of the first prompts, so that an image alone is drawn with those of the batch.
    embeddings = {key: value[: len(start)] for key, value in prompts().items()} | settings.pop("embeddings", {})
    return pipe(latents=start, generator=generator, eta=ETA.get(name, 0.0), **embeddings, **settings).images


def guided(unet, scheduler, embeddings):
    """Classifier-free guidance, written out."""
    context = torch.cat([embeddings["negative_prompt_embeds"], embeddings["prompt_embeds"]])

    def predict(x, t):
        doubled = scheduler.scale_model_input(torch.cat([x, x]), t)
        unconditional, conditional = unet(doubled, t, encoder_hidden_states=context).sample.chunk(2)
        return unconditional + SCALE * (conditional - unconditional)

    return predict


def settings_of(scheduler, name, generator):
    """What Stable Diffusion passes on to `step`."""
    parameters = inspect.signature(scheduler.step).parameters
    settings = {"eta": ETA.get(name, 0.0)} if "eta" in parameters else {}
    return {**settings, "generator": generator} if "generator" in parameters else settings


@cache
@torch.no_grad()
def by_hand(name):
    """The final latents, the scheduler, the generators, and the steps taken (see `corrected_run`)."""
    scheduler, generator, taken = SCHEDULERS[name](), generators(), []
    scheduler.set_timesteps(STEPS)
    x = latents() * scheduler.init_noise_sigma
    predict = guided(sd_unet(), scheduler, prompts())
    settings = settings_of(scheduler, name, generator)
    return corrected_run(predict, scheduler, x, (0.5,) * K, taken=taken, **settings), scheduler, generator, taken


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_corrected_run_equals_the_loop_bit_for_bit(name, record_property):
    record_property("scheduler", name)
    pipe, generator, global_state = sd_pipe(SCHEDULERS[name]()), generators(), torch.get_rng_state()
    iec.enable(pipe, CONFIG)
    with recorded_inputs(pipe.unet) as inputs:
        corrected = draw(pipe, name, generator=generator)
    expected, scheduler, by_hand_generator, _ = by_hand(name)
    steps = len(scheduler.timesteps)
    assert len(inputs) == (1 + K) * steps
    assert torch.equal(corrected, expected)
    # One draw of noise per step, and a history of the outputs that gave the states.
    states = [[g.get_state() for g in several] for several in (generator, by_hand_generator, generators())]
    assert all(torch.equal(a, b) for a, b in zip(*states[:2], strict=True))
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(states[0][0], states[2][0]) == (name not in NOISY)
    assert frozen(vars(pipe.scheduler)) == frozen(vars(scheduler))
    assert iec.summary(pipe).corrected == list(range(steps))
    assert iec.summary(pipe).all_warnings == []


@pytest.mark.parametrize("name", SCHEDULERS)
def test_relaxation_0_and_disable_keep_every_bit(name):
    pipe = sd_pipe(SCHEDULERS[name]())
    plain = draw(pipe, name)
    with iec.enabled(pipe):
        assert (draw(pipe, name) - plain).abs().max() > 1e-3
    assert torch.equal(draw(pipe, name), plain)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0)):
        assert torch.equal(draw(pipe, name), plain)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - CLIPPING))
def test_the_state_is_the_step_of_the_relaxed_output(name, record_property):
    """x^(K) = Phi(e_hat) wherever nothing is clipped, since Phi is affine."""
    record_property("scheduler", name)
    taken = by_hand(name)[-1]
    assert len(taken) >= STEPS
    for state, stepped in taken:
        assert_same_state(state, stepped)


@pytest.mark.parametrize("name", sorted(CLIPPING))
def test_with_clipping_the_state_is_not_the_step_of_the_relaxed_output(name):
    taken = by_hand(name)[-1]
    assert max((state - stepped).abs().max() for state, stepped in taken) > 1e-2


@pytest.mark.parametrize("name", sorted(NOISY))
def test_an_image_depends_on_its_own_generator_alone(name, record_property):
    record_property("scheduler", name)
    pipe = sd_pipe(SCHEDULERS[name]())
    plain = draw(pipe, name)
    iec.enable(pipe, CONFIG)
    together = draw(pipe, name)
    alone = draw(pipe, name, latents()[:1], generators()[:1])
    assert_same_state(alone, together[:1], 1e-3)  # dividing by a small alpha-bar amplifies rounding
    iec.disable(pipe)
    assert not torch.equal(plain, draw(pipe, name, generator=generators(3)[1:]))


# The paper's setting for Stable Diffusion


def paper_scheduler():
    return PNDMScheduler(
        skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )


@pytest.mark.parametrize("config", [iec.IECConfig.stable_diffusion(), iec.IECConfig.released()], ids=["first", "all"])
def test_the_pipeline_with_plms_and_our_own_sampler_agree(config):
    pipe = sd_pipe(paper_scheduler())
    plain = draw(pipe, "PNDM (PLMS)", num_inference_steps=50)
    with iec.enabled(pipe, config):
        corrected = draw(pipe, "PNDM (PLMS)", num_inference_steps=50)
        summary = iec.summary(pipe)
    scheduler = paper_scheduler()
    predict = guided(sd_unet(), scheduler, prompts())
    sampled = iec.sample(
        lambda x, t: predict(x, t[0]),
        latents(),
        num_steps=50,
        spacing="uniform",
        sampler="plms",
        alphas_cumprod=scheduler.alphas_cumprod,
        config=config,
    )
    assert summary.num_steps == 51
    assert summary.corrected == ([0] if config.steps == "first" else list(range(51)))
    assert_same_state(corrected, sampled, 1e-4)
    assert (corrected - plain).abs().max() > 1e-3
