"""Schedulers whose `step` takes other arguments, in another order, or another kind of state."""

import copy

import pytest
import torch
from diffusers import CogVideoXDPMScheduler
from tiny_models import noise

import iec

from .loops import LoopPipeline, Net, built, ddim

STEPS = 4
SETTINGS = {"beta_end": 2e-3, "clip_sample": False}


class CogVideoX(LoopPipeline):
    """The loop of CogVideoX: the step also takes the predicted x_0 of the step before, and the timestep before."""

    @torch.no_grad()
    def __call__(self, latents):
        self.scheduler.set_timesteps(STEPS)
        old, timesteps = None, self.scheduler.timesteps
        for i, t in enumerate(timesteps):
            before = timesteps[i - 1] if i else None
            latents, old = self.scheduler.step(self.unet(latents, t), old, t, before, latents, generator=generator(i))
        return latents


def generator(i):
    return torch.Generator().manual_seed(i)


def test_a_step_with_its_timestep_in_another_place_equals_the_loop():
    scheduler, net = CogVideoXDPMScheduler(**SETTINGS), Net()
    pipe = built(CogVideoX, net, CogVideoXDPMScheduler(**SETTINGS))
    x = noise(2, 3, 4, 4)
    plain = pipe(x)
    iec.enable(pipe, iec.IECConfig(relaxation=(1.0, 0.5), num_iterations=2, tolerance=0.0))
    corrected = pipe(x)
    scheduler.set_timesteps(STEPS)
    old, timesteps = None, scheduler.timesteps
    for i, t in enumerate(timesteps):
        before = timesteps[i - 1] if i else None

        def step(e, i=i, t=t, before=before, old=old, x=x):
            return copy.deepcopy(scheduler).step(e, old, t, before, x, generator=generator(i))

        state = relaxed = None
        for relaxation in (None, 1.0, 0.5):
            output = net(x if state is None else state, t)
            moved = step(output)[0]
            state = moved if relaxation is None else state + relaxation * (moved - state)
            relaxed = output if relaxation is None else torch.lerp(relaxed, output, relaxation)
        x, old = state, step(relaxed)[1]
    assert torch.equal(corrected, x)
    assert [record.timestep for record in iec.summary(pipe).steps] == timesteps.tolist()
    assert iec.summary(pipe).all_warnings == []
    iec.enable(pipe, iec.IECConfig(relaxation=0.0))
    assert torch.equal(pipe(noise(2, 3, 4, 4)), plain)


def test_a_discrete_state_is_refused():
    """Masked image models step token indices."""

    class Tokens(type(ddim())):
        def step(self, model_output, timestep, sample):
            return (sample + model_output.argmax(1),)

    class TokenPipeline(LoopPipeline):
        @torch.no_grad()
        def __call__(self, tokens):
            self.scheduler.set_timesteps(STEPS)
            for t in self.scheduler.timesteps:
                tokens = self.scheduler.step(self.unet(torch.stack([tokens] * 3, 1).float(), t), t, tokens)[0]
            return tokens

    pipe = built(TokenPipeline, scheduler=Tokens.from_config(ddim().config))
    tokens = torch.arange(32).view(2, 4, 4)
    plain = pipe(tokens)
    iec.enable(pipe)
    with pytest.raises(iec.IECUnsupportedError, match="discrete states"):
        pipe(tokens)
    with iec.enabled(pipe, iec.IECConfig(steps="none")):
        assert torch.equal(pipe(tokens), plain)
