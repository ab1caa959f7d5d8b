"""DeepCache with full steps found by calibration: what is found, its plan, and how it is applied."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_models import ddim_pipe, draw, noise, recorded_inputs, tiny_net, tiny_unet

import iec
from iec.efficient import (
    DeepCacheConfig,
    DeepCachePlan,
    QuantizationConfig,
    applied,
    apply,
    calibrate,
    load_plan,
    remove,
)
from iec.efficient.caching.dps import dps_schedule
from iec.method.noise import image_generator
from iec.storage.fingerprint import fingerprint

from . import stable_diffusion
from .architectures import decoder_resnets, skip_channels
from .loops import corrected_loop
from .test_cached_runs import BRANCH, HandCached, paper_step

STEPS, INTERVAL = 10, 3
DPS = DeepCacheConfig(INTERVAL, BRANCH, schedule="dps")
SETTINGS = {"samples": 6, "batch_size": 4}


def pipe_of(seed=0):
    return ddim_pipe(tiny_unet(seed))


@pytest.fixture(scope="module")
def plan():
    return calibrate(pipe_of(), DPS, STEPS, **SETTINGS)


def main_inputs(unet, branch, skip, run):
    """The main input of the re-entry ResNet in every evaluation, with a plain hook."""
    seen, resnet = [], decoder_resnets(unet)[-1 - branch]
    handle = resnet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, :-skip].clone()))
    run()
    handle.remove()
    return seen


def cheapest(features, interval, groups):
    """The least cost of any allowed schedule, and the cost of each, by their definition."""
    calls, costs = len(features), {}
    distance = [[(a - b).abs().sum(dtype=torch.float64).item() for a in features] for b in features]
    for inner in itertools.combinations(range(1, calls), groups - 1):
        bounds = [0, *inner, calls]
        if all(math.ceil(interval / 2) <= b - a <= 2 * interval for a, b in itertools.pairwise(bounds)):
            costs[tuple(bounds[:-1])] = sum(sum(distance[a][a:b]) for a, b in itertools.pairwise(bounds))
    return min(costs.values()), costs


# What is found


def test_the_found_steps_cost_least_over_the_features_of_full_runs(plan):
    unet = (pipe := pipe_of()).unet
    generators = [image_generator(2000, i) for i in range(6)]
    features = main_inputs(
        unet,
        BRANCH,
        skip_channels(unet)[BRANCH],
        lambda: pipe(batch_size=6, generator=generators, num_inference_steps=STEPS),
    )
    least, costs = cheapest(features, INTERVAL, 4)
    assert costs[plan.full_steps] == pytest.approx(least, rel=1e-6)
    assert sorted(costs.values())[1] > least * (1 + 1e-3)  # no other schedule would have passed
    assert plan.full_steps != dps_schedule(torch.zeros(STEPS, 2 * INTERVAL), INTERVAL)
    assert plan == DeepCachePlan(DPS, STEPS, fingerprint(unet), plan.full_steps, plan.sampler)
    assert plan.sampler is not None


def test_plms_makes_a_call_more_but_no_group_more():
    sampled = stable_diffusion.pipe_of(stable_diffusion.plms())
    found = calibrate(sampled, replace(DPS, interval=4), 8, **SETTINGS, inputs={"prompt": stable_diffusion.PROMPTS})
    assert found.num_steps == 9
    assert len(found.full_steps) == 2  # ceil(8 / 4), while ceil(9 / 4) = 3
    plain = stable_diffusion.draw(sampled, 8)
    apply(sampled, found)
    with iec.enabled(sampled, iec.IECConfig(num_iterations=0)):
        assert not torch.equal(stable_diffusion.draw(sampled, 8), plain)
        summary = iec.summary(sampled)
    assert (summary.full_evaluations, summary.cached_evaluations) == (2, 7)


def test_progress_counts_the_trajectories_and_the_pipeline_is_left_alone():
    pipe, told = pipe_of(), []
    expected = draw(pipe)
    calibrate(pipe, DPS, STEPS, **SETTINGS, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    assert torch.equal(draw(pipe), expected)


# Runs


def test_a_run_is_full_at_the_found_steps(plan):
    odd = replace(plan, full_steps=(0, 1, 5))
    x, (timesteps, step) = noise(2, 3, 8, 8), paper_step(STEPS)
    unet = tiny_unet()
    apply(unet, odd)
    assert applied(unet) is odd
    for relaxations in ((), (0.5,)):
        expected = corrected_loop(HandCached(tiny_unet()), x, timesteps, step, odd.full_steps, relaxations)
        config = iec.IECConfig(num_iterations=len(relaxations), tolerance=0.0)
        state, summary = iec.sample(unet, x, STEPS, config=config, return_summary=True)
        scale = expected.abs().max()
        torch.testing.assert_close(state / scale, expected / scale, rtol=0, atol=1e-5)
        assert summary.corrected == ([0, 1, 5] if relaxations else [])
    remove(unet)
    assert type(unet) is UNet2DModel
    assert torch.equal(iec.sample(unet, x, STEPS), iec.sample(tiny_unet(), x, STEPS))


@pytest.mark.parametrize("searched", [False, True])
def test_removing_a_cache_leaves_a_network_that_was_quantized_before_as_it_was(searched):
    pipe = pipe_of()
    calibrate(pipe, QuantizationConfig(), STEPS, **SETTINGS).put_on(pipe.unet)
    apply(pipe, DeepCacheConfig(1))
    quantized = draw(pipe, STEPS)
    remove(pipe)
    apply(pipe, calibrate(pipe, DPS, STEPS, **SETTINGS) if searched else DeepCacheConfig(INTERVAL, BRANCH))
    assert not torch.equal(draw(pipe, STEPS), quantized)
    apply(pipe, DeepCacheConfig(1))  # gives the run that the quantized layers need
    assert torch.equal(draw(pipe, STEPS), quantized)


# Plans


def test_a_plan_is_the_same_after_a_round_trip(plan, tmp_path):
    plan.save_pretrained(tmp_path / "plan")
    assert load_plan(tmp_path / "plan") == plan
    images = []
    for source in (plan, tmp_path / "plan", str(tmp_path / "plan")):
        pipe = pipe_of()
        apply(pipe, source)
        images.append(draw(pipe, STEPS))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], draw(pipe_of(), STEPS))


def edit(folder, **changes):
    settings = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "plan.safetensors").write_bytes(b"x"), "corrupt"),
        (lambda f: edit(f, schema=7), "schema 7"),
        (lambda f: edit(f, config={"steps": 3}), "incomplete"),
        (lambda f: edit(f, num_steps=None), "incomplete"),
        (lambda f: edit(f, config={"interval": 0}), "interval must be at least 1"),
    ],
)
def test_a_spoiled_plan_is_refused(plan, tmp_path, spoil, message):
    plan.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        apply(tiny_unet(), tmp_path)
    edit(tmp_path, kind="quantization")
    with pytest.raises(ValueError, match=r"not 'deepcache'|schema 7"):
        DeepCachePlan.from_pretrained(tmp_path)


def test_another_model_and_another_length_are_refused(plan):
    pipe = pipe_of(seed=1)
    expected = draw(pipe, STEPS)
    with pytest.raises(ValueError, match="calibrated for a model with fingerprint"):
        apply(pipe, plan)
    with pytest.raises(TypeError, match="but the denoiser is a TinyNet"):
        apply(tiny_net(), plan)
    assert torch.equal(draw(pipe, STEPS), expected)
    pipe = pipe_of()
    apply(pipe, plan)
    cached = draw(pipe, STEPS)
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match="for 10 steps, but the run has 9"):
        draw(pipe, STEPS - 1)
    assert inputs == []
    assert torch.equal(draw(pipe, STEPS), cached)


# What is refused


@pytest.mark.parametrize("target", [pipe_of, tiny_unet])
def test_settings_whose_steps_are_still_to_be_found_are_not_applied(target):
    made = target()
    apply(made, DeepCacheConfig(2))
    with pytest.raises(ValueError, match=r"apply the plan that iec\.efficient\.calibrate\(pipe, config, num_steps\)"):
        apply(made, DPS)
    assert applied(made) == DeepCacheConfig(2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(DPS, interval=6), "half of the steps, but got 6 for 10 steps"),
        (replace(DPS, branch=9), "Branch 9 does not exist"),
        (DeepCacheConfig(3), "schedule uniform needs no calibration: apply the DeepCacheConfig itself"),
        (DeepCacheConfig(3, schedule="centred"), "schedule centred needs no calibration"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_sampled(config, message):
    pipe = pipe_of()
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match=message):
        calibrate(pipe, config, STEPS)
    assert inputs == []


def test_only_the_full_model_is_calibrated(plan):
    pipe = pipe_of()
    apply(pipe, plan)
    with pytest.raises(ValueError, match="remove what is applied"):
        calibrate(pipe, DPS, STEPS)
