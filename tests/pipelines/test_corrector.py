"""Corrected diffusers pipelines against the same loop written by hand."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ddim_pipe, draw, image_generators, recorded_inputs, tiny_net, tiny_unet

import iec

from .by_hand import assert_same_state, corrected_run

DDIM = {
    "no clipping": {"clip_sample": False},
    "clipping": {"clip_sample": True, "beta_end": 2e-2},
    "v-prediction": {"clip_sample": False, "prediction_type": "v_prediction"},
    "thresholding": {"clip_sample": False, "thresholding": True, "beta_end": 2e-2},
    "sample": {"clip_sample": True, "prediction_type": "sample"},
}
SELECTED = {"all": [0, 1, 2, 3, 4, 5], "first": [0], "last": [5], "edges:1/4": [0, 1, 5], (1, 4): [1, 4]}
STEPS = 6


def by_hand(unet, scheduler, relaxations, selected=None, steps=STEPS, batch=2, **kwargs):
    """The network's inputs, and the images."""
    generators = image_generators(batch)
    size = unet.config.sample_size
    x = torch.cat([torch.randn(1, 3, size, size, generator=generator) for generator in generators])
    scheduler.set_timesteps(steps)
    with recorded_inputs(unet) as inputs, torch.no_grad():
        x = corrected_run(
            lambda x, t: unet(x, t).sample, scheduler, x, relaxations, selected, generator=generators, **kwargs
        )
    return inputs, (x / 2 + 0.5).clamp(0, 1)


def corrected(pipe, config, **kwargs):
    with recorded_inputs(pipe.unet) as inputs, iec.enabled(pipe, config):
        images = draw(pipe, kwargs.pop("steps", STEPS), **kwargs)
    return inputs, images


def assert_same_run(a, b):
    assert len(a[0]) == len(b[0])
    for x, y in zip([*a[0], a[1]], [*b[0], b[1]], strict=True):
        assert_same_state(x, y)


@pytest.mark.parametrize("relaxation", [0.5, (1.0, 0.5)], ids=["K1", "K2"])
@pytest.mark.parametrize("steps", SELECTED, ids=str)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("scheduler", DDIM)
def test_a_corrected_ddim_pipeline_equals_the_loop(scheduler, eta, steps, relaxation):
    net = tiny_net()
    relaxations = relaxation if isinstance(relaxation, tuple) else (relaxation,)
    config = iec.IECConfig(relaxation, len(relaxations), steps, tolerance=0.0)
    pipe = ddim_pipe(net, **DDIM[scheduler])
    piped = corrected(pipe, config, eta=eta)
    looped = by_hand(net, DDIMScheduler.from_config(pipe.scheduler.config), relaxations, SELECTED[steps], eta=eta)
    assert len(piped[0]) == STEPS + len(relaxations) * len(SELECTED[steps])
    assert_same_run(piped, looped)
    assert not torch.equal(piped[1], draw(pipe, STEPS, eta=eta))


@pytest.mark.parametrize("use_clipped", [False, True])
def test_clipped_model_outputs_are_followed(use_clipped):
    net = tiny_net()
    pipe = ddim_pipe(net, **DDIM["clipping"])
    config = iec.IECConfig.released()
    piped = corrected(pipe, config, use_clipped_model_output=use_clipped)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert_same_run(piped, by_hand(net, scheduler, (1.0, 0.5), use_clipped_model_output=use_clipped))


def test_with_clipping_the_state_itself_is_iterated():
    """The step of the relaxed output differs from the relaxed steps as soon as anything is clipped."""
    net = tiny_net()
    pipe = ddim_pipe(net, **DDIM["clipping"])
    inputs, _ = corrected(pipe, iec.IECConfig(relaxation=0.9), steps=2)
    x_t, x_0, x_1 = inputs[:3]
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(2)
    t = scheduler.timesteps[0]
    e, again = net(x_t, t).sample, net(x_0, t).sample
    in_output_space = scheduler.step(e + 0.9 * (again - e), t, x_t).prev_sample
    in_state_space = x_0 + 0.9 * (scheduler.step(again, t, x_t).prev_sample - x_0)
    assert_same_state(x_1, in_state_space)
    assert (x_1 - in_output_space).abs().max() > 1e-2


@pytest.mark.parametrize("make", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("relaxation", [(0.5,), (1.0, 0.5)], ids=["K1", "K2"])
def test_a_corrected_ddpm_pipeline_equals_the_loop(make, clip, relaxation):
    net = tiny_net()
    pipe = DDPMPipeline(net, make(beta_end=2e-3, clip_sample=clip))
    pipe.set_progress_bar_config(disable=True)
    config = iec.IECConfig(relaxation, len(relaxation), tolerance=0.0)
    piped = corrected(pipe, config)
    assert_same_run(piped, by_hand(net, make.from_config(pipe.scheduler.config), relaxation))
    assert not torch.allclose(piped[1], draw(pipe, STEPS), atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_a_ddpm_scheduler_of_any_variance_is_followed(variance):
    """With learned variances the model output has twice the channels of the sample."""

    class Learned(type(tiny_net())):
        def forward(self, sample, timestep, return_dict=True):
            output = super().forward(sample, timestep)
            output.sample = torch.cat([output.sample, 0.3 * output.sample.flip(1)], 1)
            return output

    net = tiny_net()
    if variance == "learned_range":
        net.__class__ = Learned
    pipe = DDPMPipeline(net, DDPMScheduler(beta_end=2e-3, clip_sample=False, variance_type=variance))
    pipe.set_progress_bar_config(disable=True)
    piped = corrected(pipe, iec.IECConfig(relaxation=(1.0, 0.5), num_iterations=2))
    assert_same_run(piped, by_hand(net, DDPMScheduler.from_config(pipe.scheduler.config), (1.0, 0.5)))


def test_a_real_unet_equals_the_loop():
    unet = tiny_unet()
    pipe = ddim_pipe(unet)
    piped = corrected(pipe, iec.IECConfig.released(), steps=4, eta=1.0)
    looped = by_hand(unet, DDIMScheduler.from_config(pipe.scheduler.config), (1.0, 0.5), steps=4, eta=1.0)
    assert_same_run(piped, looped)


@pytest.mark.parametrize("batch", [1, 5])
def test_any_number_of_images_equals_the_loop(batch):
    net = tiny_net()
    pipe = ddim_pipe(net)
    piped = corrected(pipe, iec.IECConfig(), batch=batch, eta=1.0)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert_same_run(piped, by_hand(net, scheduler, (0.5,), batch=batch, eta=1.0))


def test_one_step_equals_the_loop():
    net = tiny_net()
    pipe = ddim_pipe(net)
    piped = corrected(pipe, iec.IECConfig(), steps=1)
    assert len(piped[0]) == 2
    assert_same_run(piped, by_hand(net, DDIMScheduler.from_config(pipe.scheduler.config), (0.5,), steps=1))


@settings(max_examples=25)
@given(
    steps=st.integers(1, 6),
    relaxation=st.lists(st.floats(0, 1.99), min_size=1, max_size=3),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
    clip=st.booleans(),
    chosen=st.sets(st.integers(0, 5)),
    batch=st.integers(1, 3),
)
def test_any_settings_equal_the_loop(steps, relaxation, eta, clip, chosen, batch):
    net = tiny_net()
    selected = {step for step in chosen if step < steps}
    pipe = ddim_pipe(net, clip_sample=clip)
    config = iec.IECConfig(relaxation, len(relaxation), sorted(selected), tolerance=0.0)
    piped = corrected(pipe, config, steps=steps, eta=eta, batch=batch)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    looped = by_hand(net, scheduler, relaxation, selected, steps, batch, eta=eta)
    for x, y in zip([*piped[0], piped[1]], [*looped[0], looped[1]], strict=True):
        assert_same_state(x, y, 1e-3)  # a relaxation near 2 amplifies rounding


def test_one_generator_for_all_images_and_none_are_followed():
    """Whatever the noise comes from, every pass of a step must see the same draw."""
    net = tiny_net()
    pipe = ddim_pipe(net)
    config = iec.IECConfig()
    for own in (True, False):
        outputs = []
        for enabled in (True, False):
            generator = torch.Generator().manual_seed(3) if own else None
            torch.manual_seed(3)
            if enabled:
                with iec.enabled(pipe, config):
                    outputs.append(pipe(2, generator, eta=1.0, num_inference_steps=4, output_type="pt").images)
            else:
                scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
                scheduler.set_timesteps(4)
                generator = torch.Generator().manual_seed(3)
                x = torch.randn(2, 3, 6, 6, generator=generator)
                x = corrected_run(lambda x, t: net(x, t).sample, scheduler, x, generator=generator, eta=1.0)
                outputs.append((x / 2 + 0.5).clamp(0, 1))
        assert_same_state(*outputs)


# Nothing to correct


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("scheduler", DDIM)
@pytest.mark.parametrize(
    "config",
    [
        iec.IECConfig(relaxation=0.0),
        iec.IECConfig(relaxation=0.0, num_iterations=3, tolerance=0.0),
        iec.IECConfig(num_iterations=0),
        iec.IECConfig(steps="none"),
    ],
    ids=["lambda 0", "lambda 0, K 3", "K 0", "no step"],
)
def test_without_any_effect_the_images_are_bit_identical(config, scheduler, eta):
    pipe = ddim_pipe(**DDIM[scheduler])
    expected = draw(pipe, eta=eta)
    inputs, images = corrected(pipe, config, steps=4, eta=eta)
    assert torch.equal(images, expected)
    passes = config.num_iterations if config.steps == "all" else 0
    evaluated = 1 if passes else 0
    assert len(inputs) == 4 * (1 + (passes if config.tolerance == 0 else evaluated))
    torch.manual_seed(1)  # the global generator too: the pipeline without one of its own
    expected = pipe(2, num_inference_steps=4, eta=eta, output_type="pt").images
    torch.manual_seed(1)
    with iec.enabled(pipe, config):
        assert torch.equal(pipe(2, num_inference_steps=4, eta=eta, output_type="pt").images, expected)


@pytest.mark.parametrize("make", [DDPMScheduler, DDIMScheduler])
def test_without_any_effect_a_ddpm_pipeline_is_bit_identical(make):
    pipe = DDPMPipeline(tiny_net(), make())
    pipe.set_progress_bar_config(disable=True)
    expected = draw(pipe)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0)):
        assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), expected)


def test_the_output_type_and_the_return_type_are_the_pipelines():
    pipe = ddim_pipe()
    with iec.enabled(pipe):
        images = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=2).images
        (array,) = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np", return_dict=False)
    assert images[0].size == (6, 6)
    assert array.shape == (2, 6, 6, 3)


# The tolerance


def test_a_sample_below_the_tolerance_is_frozen():
    """With a huge tolerance one pass is made and kept, and no second one follows."""
    net = tiny_net()
    pipe = ddim_pipe(net)
    config = iec.IECConfig(0.5, num_iterations=3, tolerance=1e6)
    piped = corrected(pipe, config)
    assert len(piped[0]) == 2 * STEPS
    assert_same_run(piped, by_hand(net, DDIMScheduler.from_config(pipe.scheduler.config), (0.5,)))


# The scheduler's own results


def test_the_predicted_original_sample_and_the_history_are_those_of_the_relaxed_output():
    net, seen = tiny_net(), []

    class Watched(DDIMScheduler):
        def step(self, model_output, timestep, sample, **kwargs):
            seen.append(model_output.clone())
            return super().step(model_output, timestep, sample, **kwargs)

    pipe = ddim_pipe(net)
    pipe.scheduler = Watched.from_config(pipe.scheduler.config)
    inputs, _ = corrected(pipe, iec.IECConfig(relaxation=0.25), steps=1)
    x_t, x_0 = inputs
    t = pipe.scheduler.timesteps[0]
    e, again = net(x_t, t).sample, net(x_0, t).sample
    assert_same_state(seen[-1], e + 0.25 * (again - e))
    assert torch.equal(seen[0], e)


def test_the_noise_is_drawn_once_per_step():
    """After a corrected run every generator is where the plain run leaves it."""
    states = []
    for config in (None, iec.IECConfig.released()):
        pipe = ddim_pipe()
        generators = image_generators(2)
        torch.manual_seed(11)
        if config is not None:
            iec.enable(pipe, config)
        pipe(2, generators, eta=1.0, num_inference_steps=4, output_type="pt")
        states.append([*(g.get_state() for g in generators), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_generators_that_reach_a_step_through_its_keywords_are_put_back():
    """A user's scheduler may pass what it does not know on to its base class."""

    class Passing(DDIMScheduler):
        def step(self, model_output, timestep, sample, **kwargs):
            return super().step(model_output, timestep, sample, **kwargs)

    net = tiny_net()
    pipe = ddim_pipe(net)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = Passing.from_config(pipe.scheduler.config)
    assert_same_run(corrected(pipe, iec.IECConfig(), eta=1.0), by_hand(net, scheduler, (0.5,), eta=1.0))


def test_the_network_may_overwrite_its_output_when_it_is_called_again():
    """As a CUDA graph does: every call returns the same buffer."""

    class Buffered(type(tiny_net())):
        def forward(self, sample, timestep, return_dict=True):
            output = super().forward(sample, timestep)
            if "buffer" not in self.__dict__:
                self.__dict__["buffer"] = torch.empty_like(output.sample)
            output.sample = self.__dict__["buffer"].copy_(output.sample)
            return output

    net = tiny_net()
    expected = corrected(ddim_pipe(net), iec.IECConfig.released())
    buffered = copy.deepcopy(net)
    buffered.__class__ = Buffered
    assert_same_run(corrected(ddim_pipe(buffered), iec.IECConfig.released()), expected)
