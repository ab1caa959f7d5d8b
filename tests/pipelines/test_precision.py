"""Pipelines in bfloat16: the state is iterated in float32, and everything else keeps its dtype."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import ddim_pipe, draw, image_generators, recorded_inputs, tiny_net, tiny_unet

import iec

from .by_hand import assert_same_state
from .loops import LoopPipeline, Net, built

DTYPES = [torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_unet_in_another_dtype_runs_and_is_bit_identical_at_relaxation_0(dtype, eta):
    pipe = ddim_pipe(tiny_unet().to(dtype))
    expected = draw(pipe, eta=eta)
    assert expected.dtype == dtype
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0)):
        assert torch.equal(draw(pipe, eta=eta), expected)
    with iec.enabled(pipe), recorded_inputs(pipe.unet) as inputs:
        corrected = draw(pipe, eta=eta)
    assert {x.dtype for x in inputs} == {dtype}
    assert corrected.dtype == dtype
    assert not torch.equal(corrected, expected)
    assert torch.equal(draw(pipe, eta=eta), expected)


def test_the_state_is_iterated_in_float32():
    """Three passes over a bfloat16 state: only the network's inputs and the result are rounded."""
    net = tiny_net().to(torch.bfloat16)
    pipe = ddim_pipe(net)
    config = iec.IECConfig(0.3, num_iterations=3, tolerance=0.0)
    with iec.enabled(pipe, config), recorded_inputs(net) as inputs:
        draw(pipe, 2)
    generators = image_generators(2)
    x_t = torch.cat([torch.randn(1, 3, 6, 6, generator=g, dtype=torch.bfloat16) for g in generators])
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(2)
    t = scheduler.timesteps[0]

    def predict(x):
        return net(x.bfloat16(), t).sample.float()

    def step(e):
        return scheduler.step(e, t, x_t.float()).prev_sample

    states = [step(predict(x_t))]
    for _ in range(3):
        states.append(states[-1] + 0.3 * (step(predict(states[-1])) - states[-1]))
    # The inputs: the main call, three passes at x^(0), x^(1), x^(2), and the next step's main call at x^(3).
    for seen, expected in zip(inputs[:5], [x_t, *states], strict=True):
        assert_same_state(seen.float(), expected.bfloat16().float(), 1e-6)


def test_a_float32_loop_around_a_bfloat16_network():
    class Rounded(LoopPipeline):
        def predict(self, latents, t):
            return self.unet(latents.bfloat16(), t).float()

    pipe = built(Rounded, Net())
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = pipe(x)
    with iec.enabled(pipe):
        corrected = pipe(x)
    assert corrected.dtype == torch.float32
    assert not torch.equal(corrected, expected)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0)):
        assert torch.equal(pipe(x), expected)


# Corrections that the latents' dtype cannot hold


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_correction_below_the_resolution_of_the_latents_is_reported(dtype, mode):
    pipe = ddim_pipe(tiny_unet().to(dtype))
    plain = draw(pipe)
    with iec.enabled(pipe, iec.IECConfig(relaxation=1e-5, tolerance=0.0, tolerance_mode=mode)):
        corrected = draw(pipe)
        assert "4 of 4 corrected steps (the first is step 0)" in str(iec.summary(pipe))
        assert "float32" in str(iec.summary(pipe))
    # What is rounded away may still turn a tie; nothing more than one unit in the last place.
    assert (corrected - plain).abs().max() <= 4 * torch.finfo(dtype).eps
    with iec.enabled(pipe, iec.IECConfig(relaxation=1.5, tolerance=0.0, tolerance_mode=mode, steps=[0, 1])):
        draw(pipe)
        assert iec.summary(pipe).all_warnings == []


def test_the_bound_is_half_a_unit_in_the_last_place():
    """The residuals of a step decide, summed over its passes."""
    pipe = ddim_pipe(tiny_unet().to(torch.bfloat16))
    half = torch.finfo(torch.bfloat16).eps / 2
    seen = set()
    for relaxation in (0.01, 0.03, 0.1, 0.3, 1.0):
        with iec.enabled(pipe, iec.IECConfig(relaxation, num_iterations=2, steps=[0], tolerance=0.0)):
            draw(pipe)
            summary = iec.summary(pipe)
        below = bool((torch.stack(summary.steps[0].residuals).sum(0) < half).all())
        assert bool(summary.all_warnings) == below
        seen.add(below)
    assert seen == {True, False}


def test_float32_latents_hold_any_correction():
    pipe = ddim_pipe()
    with iec.enabled(pipe, iec.IECConfig(relaxation=1e-4, tolerance=0.0)):
        draw(pipe)
        assert iec.summary(pipe).all_warnings == []
