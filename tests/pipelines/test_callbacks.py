"""What a user does around a corrected run: callbacks that look, edit, stop or raise, one step, no image at all."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from tiny_models import ddim_pipe, recorded_inputs

import iec

from .by_hand import corrected_run
from .tiny_diffusers import latents, prompts, sd_pipe, sd_unet

STEPS = 4
CONFIG = iec.IECConfig(relaxation=0.5, num_iterations=2, tolerance=0.0)
TEXT = prompts()


def ddim():
    return DDIMScheduler(beta_end=2e-3, clip_sample=False)


def sample(pipe, callback=None, steps=STEPS, **settings):
    return pipe(
        latents=latents(),
        num_inference_steps=steps,
        output_type="latent",
        guidance_scale=1.0,
        prompt_embeds=TEXT["prompt_embeds"],
        callback_on_step_end=callback,
        **settings,
    ).images


def by_hand(steps=STEPS, scheduler=None, after=None):
    scheduler = ddim() if scheduler is None else scheduler
    scheduler.set_timesteps(steps)

    def predict(x, t):
        return sd_unet()(scheduler.scale_model_input(x, t), t, TEXT["prompt_embeds"]).sample

    with torch.no_grad():
        return corrected_run(predict, scheduler, latents() * scheduler.init_noise_sigma, (0.5, 0.5), after=after)


def test_a_callback_is_called_once_per_step_with_the_corrected_latents():
    pipe, seen = sd_pipe(ddim()), []

    def look(pipe, i, t, tensors):
        seen.append((i, int(t), tensors["latents"].clone()))
        return tensors

    iec.enable(pipe, CONFIG)
    final = sample(pipe, look)
    assert [(i, t) for i, t, _ in seen] == list(enumerate(pipe.scheduler.timesteps.tolist()))
    states = []
    by_hand(after=lambda i, x: (states.append(x), x)[1])
    assert all(torch.equal(a, b) for (_, _, a), b in zip(seen, states, strict=True))
    assert torch.equal(final, seen[-1][2])


def test_a_callback_that_edits_the_latents_is_honoured():
    pipe = sd_pipe(ddim())

    def edit(pipe, i, t, tensors):
        return {"latents": tensors["latents"] * 0.9 + 0.01 * i}

    iec.enable(pipe, CONFIG)
    assert torch.equal(sample(pipe, edit), by_hand(after=lambda i, x: x * 0.9 + 0.01 * i))


def test_a_callback_that_edits_the_latents_in_place_is_honoured():
    pipe = sd_pipe(ddim())

    def edit(pipe, i, t, tensors):
        tensors["latents"].mul_(0.9)
        return tensors

    iec.enable(pipe, CONFIG)
    assert torch.equal(sample(pipe, edit), by_hand(after=lambda i, x: x * 0.9))


def test_a_callback_that_changes_the_prompt_is_honoured():
    pipe, other = sd_pipe(ddim()), TEXT["negative_prompt_embeds"]

    def change(pipe, i, t, tensors):
        return {"prompt_embeds": other} if i == 1 else {}

    iec.enable(pipe, CONFIG)
    corrected = sample(pipe, change, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    scheduler = ddim()
    scheduler.set_timesteps(STEPS)
    later = set(scheduler.timesteps[2:].tolist())

    def predict(x, t):
        return sd_unet()(x, t, other if t.item() in later else TEXT["prompt_embeds"]).sample

    with torch.no_grad():
        assert torch.equal(corrected, corrected_run(predict, scheduler, latents(), (0.5, 0.5)))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, STEPS - 1])
def test_a_callback_that_raises_leaves_no_trace(error, at):
    pipe = sd_pipe(ddim())
    plain = sample(pipe)

    def fail(pipe, i, t, tensors):
        if i == at:
            raise error
        return tensors

    iec.enable(pipe, CONFIG)
    with pytest.raises(error):
        sample(pipe, fail)
    assert "step" not in vars(pipe.scheduler)
    assert "forward" not in vars(pipe.unet)
    assert not torch.overrides._get_current_function_mode_stack()
    assert len(iec.summary(pipe).steps) == at + 1
    assert torch.equal(sample(pipe), by_hand())
    iec.disable(pipe)
    assert torch.equal(sample(pipe), plain)


def test_a_callback_that_interrupts_the_pipeline_ends_with_a_warning():
    pipe = sd_pipe(ddim())

    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 1
        return tensors

    iec.enable(pipe, CONFIG)
    sample(pipe, stop)
    summary = iec.summary(pipe)
    assert summary.corrected == [0, 1]
    assert "2 steps where its scheduler had 4" in str(summary)


@pytest.mark.parametrize(
    "make",
    [
        ddim,
        lambda: EulerDiscreteScheduler(beta_end=2e-3),
        lambda: PNDMScheduler(beta_end=2e-3, skip_prk_steps=True),
        lambda: DPMSolverMultistepScheduler(beta_end=2e-3),
    ],
    ids=["DDIM", "Euler", "PLMS", "DPM-Solver++"],
)
def test_a_run_of_one_step_equals_the_loop(make):
    pipe = sd_pipe(make())
    iec.enable(pipe, CONFIG)
    with recorded_inputs(pipe.unet) as inputs:
        corrected = sample(pipe, steps=1)
    assert torch.equal(corrected, by_hand(1, make()))
    assert len(inputs) == 3
    assert iec.summary(pipe).corrected == [0]


def test_a_scheduler_that_is_swapped_between_enable_and_the_call_is_the_one_that_is_followed():
    pipe = sd_pipe(ddim())
    iec.enable(pipe, CONFIG)
    pipe.scheduler = EulerDiscreteScheduler(beta_end=2e-3)
    assert torch.equal(sample(pipe), by_hand(scheduler=EulerDiscreteScheduler(beta_end=2e-3)))


def test_an_empty_batch_is_as_without_correction():
    pipe = ddim_pipe()
    iec.enable(pipe)
    images = pipe(batch_size=0, num_inference_steps=STEPS, output_type="pt").images
    iec.disable(pipe)
    assert images.shape == pipe(batch_size=0, num_inference_steps=STEPS, output_type="pt").images.shape == (0, 3, 6, 6)
