"""CacheQuant as a whole: features, calibration, runs with every step's own correction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_models import draw, noise, tiny_unet

import iec
from iec.efficient import (
    CacheQuantConfig,
    DeepCacheConfig,
    applied,
    apply,
    calibrate,
    remove,
)
from iec.efficient.cachequant.dec import QuantizationCorrection
from iec.efficient.cachequant.reentry import reentry_layers
from iec.efficient.caching.dps import FeatureDistances, dps_schedule
from iec.efficient.caching.features import features_of
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.network import quantized_copy
from iec.method.clock import Clock, current_clock
from iec.method.noise import image_generator

from ..caching.architectures import (
    ARCHITECTURES,
    BRANCHES,
    build,
    decoder_resnets,
    evaluate,
    inputs_of,
    plain,
    skip_channels,
)
from .small import BRANCH, CACHE, INTERVAL, QUANTIZED, SETTINGS, STEPS, pipe_of


def main_inputs(unet, branch, run):
    """The main input of the re-entry ResNet in every evaluation, with a plain hook."""
    skip, seen = skip_channels(unet)[branch], []
    resnet = decoder_resnets(unet)[-1 - branch]
    handle = resnet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, :-skip].clone()))
    run()
    handle.remove()
    return seen


def trajectory_features(pipe, samples=6, seed=2000):
    """The features of the calibration's trajectories, [T] of [B, C, H, W]."""
    generators = [image_generator(seed, index) for index in range(samples)]
    return main_inputs(
        pipe.unet, BRANCH, lambda: pipe(batch_size=samples, generator=generators, num_inference_steps=STEPS)
    )


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Features


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_the_features_are_the_main_inputs_of_the_reentry_resnet(name, branch):
    unet = build(name)
    expected = main_inputs(unet, branch, lambda: [plain(unet, seed) for seed in range(3)])
    outputs, seen = [plain(unet, seed) for seed in range(3)], []
    with features_of(unet, branch, lambda step, feature: seen.append((step, feature))), Clock(3) as clock:
        for step in range(3):
            assert torch.equal(evaluate(unet, clock, step, step), outputs[step])
            clock.begin_pass(1)
            unet(*inputs_of(unet)[0], **inputs_of(unet)[1])  # a correction pass is left out
    assert [step for step, _ in seen] == [0, 1, 2]
    assert all(torch.equal(feature, main) for (_, feature), main in zip(seen, expected, strict=True))
    assert type(unet) is UNet2DModel
    assert not unet._forward_hooks


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_the_reentry_layers_are_given_what_they_get_in_an_evaluation(name, branch):
    unet = build(name)
    (feature,) = main_inputs(unet, branch, lambda: plain(unet))
    layers = reentry_layers(unet, branch)
    resnet = decoder_resnets(unet)[-1 - branch]
    modules = {layer: unet.get_submodule(layer) for layer in layers}
    assert resnet.conv_shortcut is None or resnet.conv_shortcut in modules.values()
    for layer, main_input in layers.items():
        seen = []
        handle = modules[layer].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        plain(unet)
        handle.remove()
        with torch.no_grad():
            close(main_input(feature), seen[0][:, : feature.shape[1]], 1e-5)


def test_a_norm_that_mixes_the_branches_leaves_the_convolution_out():
    found = {name: [list(reentry_layers(build(name), b)) for n, b in BRANCHES if n == name] for name in ARCHITECTURES}
    kinds = {tuple(layer.rsplit(".", 1)[1] for layer in layers) for rows in found.values() for layers in rows}
    assert kinds == {("conv_shortcut", "conv1"), ("conv_shortcut",)}


# Calibration


def lstsq(x, y):
    design = np.stack([x.double().numpy().ravel(), np.ones(x.numel())], 1)
    return np.linalg.lstsq(design, y.double().numpy().ravel(), rcond=None)[0]


def test_the_cached_feature_is_fitted_to_that_of_the_full_run(cache_plan):
    features = trajectory_features(pipe_of())
    assert cache_plan.full_steps == (0, 4)
    scale, shift = cache_plan.feature
    for step, feature in enumerate(features):
        for channel in range(feature.shape[1]):
            got = scale[step, channel].item(), shift[step, channel].item()
            if step in (0, 4):
                assert got == (1, 0)
            else:
                expected = lstsq(features[step // 4 * 4][:, channel], feature[:, channel])
                assert got == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert cache_plan.quantization is None
    assert cache_plan.layers == {}


def test_the_layers_are_fitted_to_what_they_are_given_of_the_cached_and_corrected_feature(plan):
    pipe = pipe_of()
    features, unet = trajectory_features(pipe), pipe.unet
    grids = plan.quantization.weights, plan.quantization.activations
    covered = coverage(unet, plan.quantization.config)
    for name, main_input in reentry_layers(unet, BRANCH).items():
        layer = quantized_copy(unet, covered, name, *grids, STEPS)
        fits = QuantizationCorrection(layer, unet.get_submodule(name).weight[:, : layer.widths[0]], STEPS)
        fresh = QuantizationCorrection(layer, fits.weight, STEPS)
        with Clock(STEPS) as clock, torch.no_grad():
            for step, feature in enumerate(features):
                clock.step = step
                fits.add(main_input(plan.corrected(features[step // 4 * 4], step)))
                fresh.add(main_input(feature))
        for got, expected, other in zip(plan.layers[name], fits.solve(), fresh.solve(), strict=True):
            error = (got - expected).abs().max()
            assert error < 2e-3
            # On the feature of the step itself, the fit is another one.
            assert (got - other).abs().max() > 2 * error


def test_dps_finds_the_steps_of_the_full_runs_features():
    found = calibrate(pipe_of(), replace(CACHE, schedule="dps", interval=3), STEPS, **SETTINGS)
    distances = FeatureDistances(STEPS, 3)
    for step, feature in enumerate(trajectory_features(pipe_of())):
        distances.add(step, feature)
    assert found.full_steps == dps_schedule(distances.table, 3)
    assert len(found.full_steps) == 3


@pytest.mark.parametrize(
    ("schedule", "interval", "searches"),
    [("auto", 10, False), ("auto", 11, True), ("dps", 2, True), ("uniform", 20, False), ("centred", 20, False)],
)
def test_which_schedule_is_searched(schedule, interval, searches):
    assert CacheQuantConfig(interval, schedule=schedule).cache.searches == searches


@pytest.mark.parametrize(("config", "stages"), [(CACHE, 1), (QUANTIZED, 3), (replace(QUANTIZED, schedule="dps"), 4)])
def test_progress_counts_the_trajectories_of_every_stage(config, stages):
    told = []
    calibrate(pipe_of(), config, STEPS, **SETTINGS, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(6 * stage + done, 6 * stages) for stage in range(stages) for done in (4, 6)]


def test_calibration_leaves_the_pipeline_alone():
    pipe = pipe_of()
    expected = draw(pipe, STEPS)
    calibrate(pipe, QUANTIZED, STEPS, **SETTINGS)
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    assert not pipe.unet._forward_hooks
    assert torch.equal(draw(pipe, STEPS), expected)


# Runs


class ByHand:
    """A plain UNet whose re-entry ResNet is given the stored feature as the plan corrects it, by hooks alone."""

    def __init__(self, plan):
        self.plan, self.unet, self.stored = plan, tiny_unet(), None
        self.skip = skip_channels(self.unet)[BRANCH]

    def __call__(self, x, t):
        clock = current_clock()
        resnet = decoder_resnets(self.unet)[-1 - BRANCH]
        full = clock.step in self.plan.full_steps or clock.cache_policy == "full"
        handle = resnet.register_forward_pre_hook(self.store if full else self.replace)
        output = self.unet(x, t).sample
        handle.remove()
        clock.record(full)
        return output

    def store(self, module, args):
        self.stored = args[0][:, : -self.skip]

    def replace(self, module, args):
        step = current_clock().step
        a, b = (values[step].view(1, -1, 1, 1) for values in self.plan.feature)
        return (torch.cat([a * self.stored + b, args[0][:, -self.skip :]], 1), *args[1:])


def planted(plan):
    """Corrections so different from step to step that a wrong index shows."""
    width = plan.feature[0].shape[1]
    return replace(plan, feature=(1 + 0.2 * noise(STEPS, width, seed=1), noise(STEPS, width, seed=2)))


CORRECTIONS = [
    iec.IECConfig(num_iterations=0),
    iec.IECConfig(tolerance=0.0),
    iec.IECConfig(relaxation=(1.0, 0.5), num_iterations=2, tolerance=0.0, cached_steps=True),
]


@pytest.mark.parametrize("config", CORRECTIONS)
def test_every_pass_of_a_cached_step_uses_the_correction_of_its_step(cache_plan, config):
    odd = planted(cache_plan)
    x = noise(2, 3, 8, 8)
    expected = iec.sample(ByHand(odd), x, STEPS, config=config)
    unet = tiny_unet()
    apply(unet, odd)
    state, summary = iec.sample(unet, x, STEPS, config=config, return_summary=True)
    close(state / expected.abs().max(), expected / expected.abs().max(), 1e-5)
    assert summary.full_evaluations >= 2
    drifted = replace(odd, feature=tuple(values.roll(1, 0) for values in odd.feature))
    apply(unet, drifted)
    assert (iec.sample(unet, x, STEPS, config=config) - expected).abs().max() > 2e-4 * expected.abs().max()


def test_without_a_correction_it_is_deepcache(cache_plan):
    width = cache_plan.feature[0].shape[1]
    neutral = replace(cache_plan, feature=(torch.ones(STEPS, width), torch.zeros(STEPS, width)))
    images = []
    for technique in (neutral, DeepCacheConfig(INTERVAL, BRANCH), cache_plan):
        pipe = pipe_of()
        apply(pipe, technique)
        images.append(draw(pipe, STEPS))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dec_lowers_the_error_of_the_feature_at_every_cached_step_of_other_trajectories(cache_plan, seed):
    features = trajectory_features(pipe_of(), samples=16, seed=seed)
    errors = {"corrected": 0.0, "stored": 0.0}
    for step in (1, 2, 3, 5, 6, 7):
        stored = features[step // 4 * 4]
        corrected = cache_plan.corrected(stored, step)
        assert (corrected - features[step]).norm() < (stored - features[step]).norm()
        errors["corrected"] += (corrected - features[step]).square().sum().item()
        errors["stored"] += (stored - features[step]).square().sum().item()
    assert errors["corrected"] < 0.9 * errors["stored"]


def test_a_quantized_and_cached_pipeline_runs_with_a_correction_and_gives_its_bits_back(plan):
    pipe = pipe_of()
    expected = draw(pipe, STEPS)
    apply(pipe, plan)
    assert applied(pipe) is plan
    assert plan.layers.keys() == reentry_layers(tiny_unet(), BRANCH).keys()
    both = draw(pipe, STEPS)
    assert not torch.equal(both, expected)
    iec.enable(pipe)
    draw(pipe, STEPS)
    assert iec.summary(pipe).corrected == [0, 4]
    assert iec.summary(pipe).cached_evaluations == 6
    iec.disable(pipe)
    assert torch.equal(draw(pipe, STEPS), both)
    remove(pipe)
    assert type(pipe.unet) is UNet2DModel
    assert torch.equal(draw(pipe, STEPS), expected)


def test_the_layers_use_their_corrections(plan):
    images = []
    for layers in (plan.layers, {}, {n: (a.roll(1, 0), b.roll(1, 0) + 0.5) for n, (a, b) in plan.layers.items()}):
        pipe = pipe_of()
        apply(pipe, replace(plan, layers=layers))
        images.append(draw(pipe, STEPS))
    assert not torch.equal(images[0], images[1])
    assert (images[2] - images[0]).abs().max() > 1e-3
