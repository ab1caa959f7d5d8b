"""CacheQuant on Stable Diffusion: calibrated with prompts, sampled with guidance in one doubled batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_models import image_generators, noise

import iec
from iec.efficient import CacheQuantConfig, DeepCacheConfig, apply, calibrate, load_plan, remove
from iec.efficient.cachequant.reentry import reentry_layers
from iec.efficient.caching.features import features_of
from iec.method.clock import Clock
from iec.method.noise import image_generator

from ..caching.conditional import BRANCHES, build, by_hand, inputs_of, plain
from ..caching.loops import corrected_loop
from ..caching.stable_diffusion import PROMPTS, SCALE, Guided, ddim, draw, pipe_of, plms

STEPS, INTERVAL, BRANCH = 6, 3, 1
CACHE = CacheQuantConfig(INTERVAL, weights=None)  # the default branch is 1
QUANTIZED = CacheQuantConfig(INTERVAL)
SETTINGS = {"samples": 4, "batch_size": 2, "inputs": {"prompt": PROMPTS, "guidance_scale": SCALE}}


@pytest.fixture(scope="module")
def cache_plan():
    return calibrate(pipe_of(ddim()), CACHE, STEPS, **SETTINGS)


@pytest.fixture(scope="module")
def plan():
    return calibrate(pipe_of(ddim()), QUANTIZED, STEPS, **SETTINGS)


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_the_features_are_the_main_inputs_of_the_reentry_resnet(name, branch):
    unet, seen = build(name), []
    with features_of(unet, branch, lambda step, feature: seen.append(feature)), Clock(2) as clock, torch.no_grad():
        for seed in range(2):
            assert torch.equal(unet(**inputs_of(unet, seed)).sample, by_hand(unet, branch, **inputs_of(unet, seed))[0])
            clock.advance()
    assert all(torch.equal(seen[seed], by_hand(unet, branch, **inputs_of(unet, seed))[1]) for seed in range(2))
    assert type(unet) is UNet2DConditionModel


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_the_reentry_layers_are_given_what_they_get_in_an_evaluation(name, branch):
    unet = build(name)
    inputs = inputs_of(unet)
    _, feature = by_hand(unet, branch, **inputs)
    layers = reentry_layers(unet, branch)
    assert any(layer.endswith("conv_shortcut") for layer in layers)
    for layer, main_input in layers.items():
        seen = []
        handle = unet.get_submodule(layer).register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        plain(unet, **inputs)
        handle.remove()
        with torch.no_grad():
            torch.testing.assert_close(main_input(feature), seen[0][:, : feature.shape[1]], rtol=1e-5, atol=1e-5)


def lstsq(x, y):
    design = np.stack([x.double().numpy().ravel(), np.ones(x.numel())], 1)
    return np.linalg.lstsq(design, y.double().numpy().ravel(), rcond=None)[0]


def test_one_correction_is_fitted_to_both_halves_of_the_doubled_batch(cache_plan):
    pipe = pipe_of(ddim())
    model = Guided(pipe, BRANCH)
    x = torch.cat([torch.randn(1, 4, 8, 8, generator=image_generator(2000, i)) for i in range(4)])
    model.text = model.text.repeat_interleave(2, 0)[[0, 2, 1, 3, 4, 6, 5, 7]]  # the prompts take turns
    features = []

    class Recorded:
        def full(self, x, t):
            output, feature = model.full(x, t)
            features.append(feature)
            return output, feature

    pipe.scheduler.set_timesteps(STEPS)
    steps = pipe.scheduler.timesteps
    corrected_loop(Recorded(), x, steps, lambda i, x, e: pipe.scheduler.step(e, steps[i], x).prev_sample, range(STEPS))
    assert cache_plan.full_steps == (0, 3)
    scale, shift = cache_plan.feature
    assert features[0].shape[0] == 8
    for step in (1, 2, 4, 5):
        for channel in range(scale.shape[1]):
            expected = lstsq(features[step // 3 * 3][:, channel], features[step][:, channel])
            got = scale[step, channel].item(), shift[step, channel].item()
            assert got == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("scale", [SCALE, 1.0])
def test_a_guided_run_uses_the_correction_of_its_step_in_both_halves(cache_plan, scale):
    width = cache_plan.feature[0].shape[1]
    odd = replace(cache_plan, feature=(1 + 0.2 * noise(STEPS, width, seed=1), noise(STEPS, width, seed=2)))
    pipe = pipe_of(ddim())

    class Corrected(Guided):
        def cached(self, x, t, feature):
            step = pipe.scheduler.timesteps.tolist().index(t)
            a, b = (values[step].view(1, -1, 1, 1) for values in odd.feature)
            return super().cached(x, t, a * feature + b)

    pipe.scheduler.set_timesteps(STEPS)
    steps = pipe.scheduler.timesteps

    def step(i, x, e):
        return pipe.scheduler.step(e, steps[i], x).prev_sample

    model = Corrected(pipe, BRANCH, scale)
    expected = [corrected_loop(model, noise(2, 4, 8, 8), steps, step, (0, 3), lambdas) for lambdas in ((), (0.5,))]
    apply(pipe, odd)
    assert torch.equal(draw(pipe, STEPS, scale), expected[0])
    with iec.enabled(pipe, iec.IECConfig(tolerance=0.0)):
        torch.testing.assert_close(draw(pipe, STEPS, scale), expected[1], rtol=1e-5, atol=1e-5)


def test_a_quantized_and_cached_pipeline_samples_with_guidance_and_gives_its_bits_back(plan, tmp_path):
    pipe = pipe_of(ddim())
    expected = draw(pipe, STEPS)
    apply(pipe, DeepCacheConfig(INTERVAL))
    cached = draw(pipe, STEPS)
    plan.save_pretrained(tmp_path)
    images = []
    for source in (plan, tmp_path):
        apply(pipe, source)
        images.append(draw(pipe, STEPS))
    assert torch.equal(*images)
    assert plan.layers.keys() == reentry_layers(build("cross attention"), BRANCH).keys()
    assert load_plan(tmp_path).full_steps == (0, 3)
    error = (images[0] - expected).norm()
    assert 0 < error < 0.1 * expected.norm()
    assert not torch.equal(images[0], cached)
    with iec.enabled(pipe):
        draw(pipe, STEPS, generator=image_generators(2))
        assert iec.summary(pipe).corrected == [0, 3]
    remove(pipe)
    assert type(pipe.unet) is UNet2DConditionModel
    assert torch.equal(draw(pipe, STEPS), expected)


def test_plms_is_calibrated_by_its_calls():
    found = calibrate(pipe_of(plms()), replace(CACHE, schedule="dps", interval=4), 8, **SETTINGS)
    assert found.num_steps == 9
    assert found.feature[0].shape[0] == 9
    assert len(found.full_steps) == 2
    pipe = pipe_of(plms())
    apply(pipe, found)
    assert torch.isfinite(draw(pipe, 8)).all()
