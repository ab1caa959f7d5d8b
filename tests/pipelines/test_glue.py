"""Pipelines that do something between two scheduler steps: corrected exactly, or refused by name."""

import copy

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.models.unets.unet_2d import UNet2DOutput
from tiny_models import noise

import iec

from .by_hand import assert_same_state, corrected_run
from .loops import LoopPipeline, Net, built, ddim

CONTEXT = torch.tensor([0.0, 0.0, 1.0, -1.0])
CONFIG = iec.IECConfig(relaxation=(1.0, 0.5), num_iterations=2, tolerance=0.0)


class Guided(LoopPipeline):
    """Classifier-free guidance in one call."""

    def predict(self, latents, t):
        doubled = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
        unconditional, conditional = self.unet(doubled, t, context=CONTEXT).chunk(2)
        return unconditional + 2.5 * (conditional - unconditional)


class GuidedTwice(LoopPipeline):
    """Classifier-free guidance in two calls, rescaled."""

    def predict(self, latents, t):
        unconditional, conditional = self.unet(latents, t), self.unet(latents, t, context=CONTEXT[2:])
        output = unconditional + 2.5 * (conditional - unconditional)
        return 0.7 * output * (conditional.std() / output.std()) + 0.3 * output


class InPlace(LoopPipeline):
    """Arithmetic in place, on tensors of its own."""

    def predict(self, latents, t):
        x = torch.zeros(2, 3, 4, 4)
        x[:] = latents
        x *= 0.9
        output = 1.0 * self.unet(x, t)
        output += 0.1
        output[:, :1] /= 2
        return output


class InPlaceOnTheOutput(LoopPipeline):
    """Arithmetic in place on what the network returned, as diffusers' self-attention guidance does."""

    def predict(self, latents, t):
        output = self.unet(latents, t)
        output += 0.1 * latents
        return output


class InPlaceOnTheChunks(LoopPipeline):
    """Guidance in place on views of what the network returned."""

    def predict(self, latents, t):
        unconditional, conditional = self.unet(torch.cat([latents, latents]), t, context=CONTEXT).chunk(2)
        unconditional += 2.5 * (conditional - unconditional)
        return unconditional


class Cast(LoopPipeline):
    """The network in another dtype."""

    def predict(self, latents, t):
        return -self.unet(latents.double(), t).to(latents.dtype)


class Packed(LoopPipeline):
    """Tokens for the network, a picture for the scheduler."""

    def predict(self, latents, t):
        tokens = latents.view(2, 3, 2, 2, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 4, 4)
        return self.unet(tokens, t).view(2, 3, 2, 2, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 4, 4)


class Conditioned(LoopPipeline):
    """A condition beside the channels (inpainting, image to video), and branches on tensor values."""

    def predict(self, latents, t):
        output = self.unet(torch.cat([latents, CONDITION], 1), t)[:, :3]
        return output if output.mean() > 1e9 else output * 1.5


class FixedNoise(LoopPipeline):
    """Noise that depends on nothing: a replay uses the same."""

    def predict(self, latents, t):
        return self.unet(latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(int(t))), t)


class TupleOutput(LoopPipeline):
    def predict(self, latents, t):
        return self.unet(latents, t)[0]


class NamedOutput(LoopPipeline):
    def predict(self, latents, t):
        return self.unet(latents, t)["sample"]


class ModelOutput(LoopPipeline):
    def predict(self, latents, t):
        return self.unet(latents, t).sample


CONDITION = noise(2, 1, 4, 4, seed=9)
REPLAYED = {
    LoopPipeline: Net(),
    Guided: Net(),
    GuidedTwice: Net(),
    InPlace: Net(),
    InPlaceOnTheOutput: Net(),
    InPlaceOnTheChunks: Net(),
    Cast: Net(),
    Packed: Net(),
    Conditioned: Net(4),
    FixedNoise: Net(),
    TupleOutput: Net(kind=lambda output: (output, output.sum())),
    NamedOutput: Net(kind=lambda output: {"other": 1, "sample": output}),
    ModelOutput: Net(kind=lambda output: UNet2DOutput(sample=output)),
}
GLOBAL_NOISE = {
    "DDPM": lambda: DDPMScheduler(beta_end=2e-3, clip_sample=False),
    "Euler ancestral": lambda: EulerAncestralDiscreteScheduler(beta_end=2e-3),
    "SDE-DPM-Solver++": lambda: DPMSolverMultistepScheduler(beta_end=2e-3, algorithm_type="sde-dpmsolver++"),
}


def looped(pipe, x, steps=4, begin=0, relaxations=(1.0, 0.5), **settings):
    pipe = built(type(pipe), pipe.unet, type(pipe.scheduler).from_config(pipe.scheduler.config))
    pipe.scheduler.set_timesteps(steps)
    return corrected_run(pipe.predict, pipe.scheduler, x, relaxations, **settings)


@pytest.mark.parametrize("cls", REPLAYED)
def test_a_pipeline_with_glue_equals_the_loop(cls):
    pipe, x = built(cls, REPLAYED[cls]), noise(2, 3, 4, 4)
    expected = pipe(x)
    with iec.enabled(pipe, CONFIG):
        corrected = pipe(x)
    assert_same_state(corrected, looped(pipe, x))
    assert (corrected - expected).abs().max() > 1e-3


@pytest.mark.parametrize("cls", REPLAYED)
def test_a_pipeline_with_glue_is_bit_identical_at_relaxation_0(cls):
    pipe, x = built(cls, REPLAYED[cls]), noise(2, 3, 4, 4)
    expected = pipe(x)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0)):
        assert torch.equal(pipe(x), expected)
    assert torch.equal(pipe(x), expected)


@pytest.mark.parametrize("scheduler", GLOBAL_NOISE)
def test_a_step_that_draws_from_the_global_generator_equals_the_loop(scheduler):
    pipe = built(Guided, scheduler=GLOBAL_NOISE[scheduler]())
    x = noise(2, 3, 4, 4)
    with iec.enabled(pipe, CONFIG):
        torch.manual_seed(5)
        corrected = pipe(x, 5)
        summary = iec.summary(pipe)
    assert summary.full_evaluations == 3 * len(pipe.scheduler.timesteps)
    assert summary.warnings == []
    torch.manual_seed(5)
    assert_same_state(corrected, hand_with_global_noise(pipe, x, 5), 1e-4)


def hand_with_global_noise(pipe, x, steps):
    """The loop where `step` draws from torch's global generator: its state is put back after every dry step."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    pipe = built(type(pipe), pipe.unet, scheduler)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        frozen, rng = None, None

        def dry(output, t=t, x_t=x):
            result = copy.deepcopy(frozen).step(output, t, x_t).prev_sample  # noqa: B023
            torch.set_rng_state(rng)  # noqa: B023
            return result

        e = pipe.predict(x, t)
        frozen, rng = copy.deepcopy(scheduler), torch.get_rng_state()
        state, relaxed = dry(e), e
        for relaxation in (1.0, 0.5):
            # predict may look at the scheduler (scale_model_input), which is still before its step
            output = pipe.predict(state, t)
            state = state + relaxation * (dry(output) - state)
            relaxed = relaxed + relaxation * (output - relaxed)
        scheduler.step(relaxed, t, x)
        x = state
    return x


@pytest.mark.parametrize("scheduler", GLOBAL_NOISE)
def test_a_step_that_draws_from_the_global_generator_is_bit_identical_at_relaxation_0(scheduler):
    pipe = built(Guided, scheduler=GLOBAL_NOISE[scheduler]())
    x = noise(2, 3, 4, 4)
    torch.manual_seed(5)
    expected, state = pipe(x, 5), torch.get_rng_state()
    torch.manual_seed(5)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0, num_iterations=2, tolerance=0.0)):
        assert torch.equal(pipe(x, 5), expected)
    assert torch.equal(torch.get_rng_state(), state)


# The sample is a part of the tensor that feeds the network


class Sliced(LoopPipeline):
    """Image to video: the first frame is given, the scheduler steps the others."""

    @torch.no_grad()
    def __call__(self, latents, num_inference_steps=4):
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            output = self.unet(latents, t)
            frames = self.scheduler.step(output[:, :, 1:], t, latents[:, :, 1:]).prev_sample
            latents = torch.cat([latents[:, :, :1], frames], dim=2)
        return latents


def test_a_sample_that_is_a_slice_equals_the_loop():
    class Mixing(Net):
        """Frames look at each other, so that the given one matters."""

        def forward(self, x, t, context=None):
            return super().forward(x + x.mean(dim=2, keepdim=True), t)

    net, x = Mixing(), noise(2, 3, 4, 5)
    pipe = built(Sliced, net)
    with iec.enabled(pipe, CONFIG):
        corrected = pipe(x)
    first = x[:, :, :1]
    scheduler = ddim()
    scheduler.set_timesteps(4)

    def predict(frames, t):
        return net(torch.cat([first, frames], 2), t)[:, :, 1:]

    frames = corrected_run(predict, scheduler, x[:, :, 1:], (1.0, 0.5))
    assert_same_state(corrected, torch.cat([first, frames], 2))


# A run that begins inside its timesteps


@pytest.mark.parametrize("begin", [1, 3])
def test_a_run_that_begins_inside_the_timesteps_equals_the_loop(begin):
    """As image to image does: T is what is left of the schedule."""
    pipe, x = built(LoopPipeline), noise(2, 3, 4, 4)
    iec.enable(pipe, CONFIG)
    corrected = pipe(x, 5, begin=begin)
    summary = iec.summary(pipe)
    assert summary.num_steps == 5 - begin
    assert summary.corrected == list(range(5 - begin))
    scheduler = ddim()
    scheduler.set_timesteps(5)
    scheduler.timesteps = scheduler.timesteps[begin:]
    assert_same_state(corrected, corrected_run(pipe.predict, scheduler, x, (1.0, 0.5)))


@pytest.mark.parametrize("begin", [0, 2, 4])
def test_a_second_order_run_that_begins_inside_the_timesteps_knows_its_length(begin):
    """Heun lists every timestep but the first twice, and image to image begins at the second of the two."""

    class Later(LoopPipeline):
        @torch.no_grad()
        def __call__(self, latents):
            self.scheduler.set_timesteps(4)
            self.scheduler.set_begin_index(begin)
            for t in self.scheduler.timesteps[begin:]:
                latents = self.scheduler.step(self.predict(latents, t), t, latents).prev_sample
            return latents

    pipe = built(Later, scheduler=HeunDiscreteScheduler(beta_end=2e-3))
    iec.enable(pipe, iec.IECConfig(steps="last"))
    pipe(noise(2, 3, 4, 4))
    summary = iec.summary(pipe)
    assert summary.num_steps == len(summary.steps) == 7 - begin
    assert summary.corrected == [6 - begin]
    assert summary.warnings == []


# What cannot be replayed


class FreshNoise(LoopPipeline):
    def predict(self, latents, t):
        return self.unet(latents, t) + 0.1 * torch.randn_like(latents)


class ThroughNumpy(LoopPipeline):
    def predict(self, latents, t):
        return self.unet(torch.from_numpy(latents.numpy().copy()), t)


class NumpyAfterwards(LoopPipeline):
    def predict(self, latents, t):
        return torch.from_numpy(self.unet(latents, t).numpy().copy())


class NoNetwork(LoopPipeline):
    def predict(self, latents, t):
        return latents * 0.1


@pytest.mark.parametrize("cls", [FreshNoise, ThroughNumpy, NumpyAfterwards, NoNetwork])
def test_what_cannot_be_replayed_is_refused(cls):
    pipe, x = built(cls), noise(2, 3, 4, 4)
    torch.manual_seed(0)
    expected = pipe(x)
    iec.enable(pipe)
    with pytest.raises(iec.IECUnsupportedError, match=r"iec\.disable"):
        pipe(x)
    iec.disable(pipe)
    torch.manual_seed(0)
    assert torch.equal(pipe(x), expected)


def test_what_cannot_be_replayed_does_not_matter_at_steps_that_are_not_selected():
    pipe, x = built(ThroughNumpy), noise(2, 3, 4, 4)
    expected = pipe(x)
    with iec.enabled(pipe, iec.IECConfig(steps="none")):
        assert torch.equal(pipe(x), expected)


class ScaledAfterwards(LoopPipeline):
    """Changes the state in place between the network and the scheduler: the network saw another one."""

    @torch.no_grad()
    def __call__(self, latents, num_inference_steps=4):
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            output = self.unet(latents, t)
            latents.mul_(0.5)
            latents = self.scheduler.step(output, t, latents).prev_sample
        return latents


def test_a_state_that_changes_after_the_network_is_not_corrected_wrongly():
    """The network at x would see x / 0.5, which the recording cannot know: followed exactly, or refused."""
    pipe, x = built(ScaledAfterwards), noise(2, 3, 4, 4)
    iec.enable(pipe, iec.IECConfig(steps="first"))
    try:
        corrected = pipe(x.clone())
    except iec.IECUnsupportedError:
        return
    scheduler, net = ddim(), pipe.unet
    scheduler.set_timesteps(4)
    t, half = scheduler.timesteps[0], 0.5 * x
    state = scheduler.step(net(x, t), t, half).prev_sample
    state = state + 0.5 * (scheduler.step(net(state / 0.5, t), t, half).prev_sample - state)
    for t in scheduler.timesteps[1:]:
        state = scheduler.step(net(state, t), t, 0.5 * state).prev_sample
    assert_same_state(corrected, state)


class SilentNoise(LoopPipeline):
    """Draws noise that has no effect, as a guidance of strength 0 does."""

    def predict(self, latents, t):
        return self.unet(latents, t) + 0.0 * torch.randn_like(latents)


def test_a_replay_leaves_the_random_state_alone():
    pipe, x = built(SilentNoise, scheduler=DDPMScheduler(beta_end=2e-3)), noise(2, 3, 4, 4)
    torch.manual_seed(0)
    expected = pipe(x)
    torch.manual_seed(0)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0)):
        assert torch.equal(pipe(x), expected)


def test_a_pipeline_that_stops_early_says_so():
    class Stopping(LoopPipeline):
        @torch.no_grad()
        def __call__(self, latents):
            self.scheduler.set_timesteps(5)
            for t in self.scheduler.timesteps[:3]:
                latents = self.scheduler.step(self.unet(latents, t), t, latents).prev_sample
            return latents

    pipe = built(Stopping)
    iec.enable(pipe)
    pipe(noise(2, 3, 4, 4))
    assert "3 steps where its scheduler had 5" in str(iec.summary(pipe))
