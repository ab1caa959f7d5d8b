"""Whole runs with DeepCache: nothing leaks, and correction does with the cache what its policy says."""

import gc
import threading
from itertools import product

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import LiveTensors, ddim_pipe, draw, image_generators, noise, on_evaluation, recorded_inputs, tiny_unet

import iec
from iec.efficient import DeepCacheConfig, apply
from iec.method.ddim import alpha_pairs, alphas_cumprod_linear, coefficients, spaced_timesteps
from iec.runtime import SpacedDDIMScheduler

from .loops import corrected_loop

BRANCH = 1
STEPS, INTERVAL = 6, 3
NONE = iec.IECConfig(num_iterations=0)


def cached_unet(interval=INTERVAL, **kwargs):
    unet = tiny_unet(**kwargs)
    apply(unet, DeepCacheConfig(interval, BRANCH))
    return unet


class HandCached:
    """A plain UNet whose re-entry ResNet is given the feature of an earlier evaluation, by hooks alone."""

    def __init__(self, unet):
        self.unet = unet
        self.resnet = [resnet for block in unet.up_blocks for resnet in block.resnets][-1 - BRANCH]
        self.skip = unet.config.block_out_channels[0]  # of entries 0 and 1

    def full(self, x, t):
        """The output, and the feature."""
        stored = []
        handle = self.resnet.register_forward_pre_hook(lambda module, args: stored.append(args[0][:, : -self.skip]))
        output = self.unet(x, t).sample
        handle.remove()
        return output, stored[0]

    def cached(self, x, t, feature):
        """The output with this feature."""

        def replace(module, args):
            return (torch.cat([feature, args[0][:, -self.skip :]], 1), *args[1:])

        handle = self.resnet.register_forward_pre_hook(replace)
        output = self.unet(x, t).sample
        handle.remove()
        return output


def by_hand(x, timesteps, step, relaxations, policy, cached_steps=False, interval=INTERVAL):
    full_steps = range(0, len(timesteps), interval)
    return corrected_loop(HandCached(tiny_unet()), x, timesteps, step, full_steps, relaxations, policy, cached_steps)


def paper_step(num_steps=STEPS):
    """DDIM with the paper's spacing, and its timesteps."""
    timesteps = spaced_timesteps(num_steps)
    maps = [coefficients(*pair) for pair in alpha_pairs(timesteps, alphas_cumprod_linear())]
    return timesteps, lambda i, x, e: maps[i].A * x + maps[i].B * e


def close(a, b, tolerance=1e-5):
    scale = max(1.0, b.abs().max().item())
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)


POLICIES = list(product(["refresh", "bypass", "reuse"], [False, True], [(0.5,), (1.0, 0.5)]))


@pytest.mark.parametrize(("policy", "cached_steps", "relaxations"), POLICIES)
def test_a_corrected_cached_run_equals_the_loop(policy, cached_steps, relaxations):
    config = iec.IECConfig(relaxations, len(relaxations), cached_steps=cached_steps, cache=policy, tolerance=0.0)
    x = noise(2, 3, 8, 8)
    timesteps, step = paper_step()
    expected = by_hand(x, timesteps, step, relaxations, policy, cached_steps)
    state, summary = iec.sample(cached_unet(), x, STEPS, config=config, return_summary=True)
    close(state, expected)
    counted(summary, policy, cached_steps, len(relaxations))
    others = {name: by_hand(x, timesteps, step, relaxations, name, cached_steps) for name in ("refresh", "bypass")}
    assert (others["refresh"] - others["bypass"]).abs().max() > 1e-4 * expected.abs().max()  # the policies differ


def counted(summary, policy, cached_steps, passes):
    full_steps, cached = 2, 4
    assert summary.selected == list(range(STEPS))
    assert summary.corrected == (list(range(STEPS)) if cached_steps else [0, 3])
    assert summary.skipped == ([] if cached_steps else [1, 2, 4, 5])
    at_cached = cached * passes if cached_steps else 0
    full = full_steps * (1 + passes) + (0 if policy == "reuse" else at_cached)
    assert summary.full_evaluations == full
    assert summary.cached_evaluations == cached + (at_cached if policy == "reuse" else 0)


@pytest.mark.parametrize(("policy", "cached_steps", "relaxations"), POLICIES)
def test_a_corrected_cached_pipeline_equals_the_loop(policy, cached_steps, relaxations):
    config = iec.IECConfig(relaxations, len(relaxations), cached_steps=cached_steps, cache=policy, tolerance=0.0)
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, DeepCacheConfig(INTERVAL, BRANCH))
    iec.enable(pipe, config)
    images = draw(pipe, STEPS)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    x = torch.cat([torch.randn(1, 3, 8, 8, generator=generator) for generator in image_generators(2)])

    def step(i, x, e):
        return scheduler.step(e, scheduler.timesteps[i], x).prev_sample

    expected = by_hand(x, scheduler.timesteps, step, relaxations, policy, cached_steps)
    close(images, (expected / 2 + 0.5).clamp(0, 1))
    counted(iec.summary(pipe), policy, cached_steps, len(relaxations))


@pytest.mark.parametrize("config", [NONE, iec.IECConfig(), iec.IECConfig(cache="bypass", cached_steps=True)])
def test_a_cached_pipeline_with_the_papers_spacing_equals_iec_sample(config):
    unet = tiny_unet()
    pipe = ddim_pipe(unet, SpacedDDIMScheduler())
    apply(pipe, DeepCacheConfig(INTERVAL, BRANCH))
    with iec.enabled(pipe, config), recorded_inputs(unet) as piped:
        draw(pipe, STEPS)
    x = torch.cat([torch.randn(1, 3, 8, 8, generator=generator) for generator in image_generators(2)])
    with recorded_inputs(unet) as sampled:
        iec.sample(unet, x, STEPS, config=config)
    assert len(piped) == len(sampled) >= STEPS
    for a, b in zip(piped, sampled, strict=True):
        close(a, b)


@pytest.mark.parametrize("cached_steps", [False, True])
@pytest.mark.parametrize("policy", ["bypass", "reuse"])
def test_relaxation_0_leaves_the_cached_run_alone_bit_for_bit(policy, cached_steps):
    config = iec.IECConfig(0.0, 2, cached_steps=cached_steps, cache=policy, tolerance=0.0)
    unet, x = cached_unet(), noise(2, 3, 8, 8)
    expected = iec.sample(unet, x, STEPS, config=NONE)
    state, summary = iec.sample(unet, x, STEPS, config=config, return_summary=True)
    assert torch.equal(state, expected)
    assert summary.full_evaluations + summary.cached_evaluations == STEPS + 2 * (STEPS if cached_steps else 2)
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, DeepCacheConfig(INTERVAL, BRANCH))
    expected = draw(pipe, STEPS, eta=1.0)
    with iec.enabled(pipe, config):
        assert torch.equal(draw(pipe, STEPS, eta=1.0), expected)


@pytest.mark.parametrize("cached_steps", [False, True])
def test_relaxation_0_with_refresh_is_the_control_of_a_fresher_cache(cached_steps):
    config = iec.IECConfig(relaxation=0.0, cache="refresh", cached_steps=cached_steps)
    unet, x = cached_unet(), noise(2, 3, 8, 8)
    timesteps, step = paper_step()
    state = iec.sample(unet, x, STEPS, config=config)
    close(state, by_hand(x, timesteps, step, (0.0,), "refresh", cached_steps))
    without = iec.sample(unet, x, STEPS, config=NONE)
    assert (state - without).abs().max() > 1e-4 * without.abs().max()


@pytest.mark.parametrize("policy", ["refresh", "bypass", "reuse"])
def test_without_cached_steps_an_interval_of_1_is_the_plain_correction(policy):
    x = noise(2, 3, 8, 8)
    config = iec.IECConfig(cache=policy)
    assert torch.equal(
        iec.sample(cached_unet(1), x, STEPS, config=config), iec.sample(tiny_unet(), x, STEPS, config=config)
    )


def test_two_evaluations_in_one_step_keep_their_own_features_or_are_refused():
    """Guidance in two calls is guidance in one call of a doubled batch; the calls must not share a feature."""
    settings = {"num_class_embeds": 2}
    zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])

    def in_one_call(x, t):
        labels = torch.cat([zero, one])
        unconditional, conditional = unet(torch.cat([x, x]), torch.cat([t, t]), labels).sample.chunk(2)
        return unconditional + 3 * (conditional - unconditional)

    def in_two_calls(x, t):
        unconditional, conditional = unet(x, t, zero).sample, unet(x, t, one).sample
        return unconditional + 3 * (conditional - unconditional)

    unet, x = cached_unet(**settings), noise(2, 3, 8, 8)
    expected = iec.sample(in_one_call, x, STEPS, config=NONE)
    try:
        state = iec.sample(in_two_calls, x, STEPS, config=NONE)
    except RuntimeError:
        return
    close(state, expected)


# Nothing leaks


@pytest.mark.parametrize("config", [NONE, iec.IECConfig(), iec.IECConfig(cached_steps=True)])
def test_the_second_run_equals_the_first(config):
    unet, x = cached_unet(), noise(2, 3, 8, 8)
    first = iec.sample(unet, x, STEPS, config=config)
    iec.sample(unet, noise(3, 3, 8, 8, seed=5), 4, config=config)  # another batch, another length
    assert torch.equal(iec.sample(unet, x, STEPS, config=config), first)


def test_a_run_that_was_interrupted_leaves_nothing_to_the_next():
    unet, x = cached_unet(), noise(2, 3, 8, 8)
    expected = iec.sample(unet, x, STEPS)
    calls = []

    def interrupt(x):
        calls.append(x)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with on_evaluation(unet, interrupt), pytest.raises(KeyboardInterrupt):
        iec.sample(unet, noise(2, 3, 8, 8, seed=7), STEPS)
    assert torch.equal(iec.sample(unet, x, STEPS), expected)


@pytest.mark.parametrize("by_pipeline", [False, True])
def test_no_feature_stays_alive_after_a_run(by_pipeline):
    def left_behind(unet, cache):
        pipe = ddim_pipe(unet)
        if cache:
            apply(pipe, DeepCacheConfig(INTERVAL, BRANCH))
        gc.collect()
        with LiveTensors() as live:
            result = draw(pipe, STEPS) if by_pipeline else iec.sample(unet, x, STEPS)
            gc.collect()
            return live.bytes - result.untyped_storage().nbytes()

    x = noise(2, 3, 8, 8)
    assert left_behind(tiny_unet(), cache=True) <= left_behind(tiny_unet(), cache=False)


def test_one_feature_is_all_that_a_cache_keeps():
    feature = 2 * 16 * 8 * 8 * 4  # the main input at branch 1: the upsampled deeper level

    def held_before_each_evaluation(interval):
        unet, held = tiny_unet(), []
        if interval:
            apply(unet, DeepCacheConfig(interval, BRANCH))
        with LiveTensors() as live, on_evaluation(unet, lambda x: held.append(live.bytes)):
            iec.sample(unet, noise(2, 3, 8, 8), STEPS, config=NONE)
        return held

    plain = held_before_each_evaluation(None)
    for interval in (1, 3, 6):
        extra = [a - b for a, b in zip(held_before_each_evaluation(interval), plain, strict=True)]
        assert extra == [0] + [feature] * (STEPS - 1)


@pytest.mark.parametrize("config", [NONE, iec.IECConfig(cached_steps=True, cache="refresh")])
def test_two_threads_with_one_cached_unet_do_not_touch_each_other(config):
    unet = cached_unet()
    noises = [noise(2, 3, 8, 8, seed=1), noise(3, 3, 8, 8, seed=2)]
    lengths = [6, 4]
    alone = [iec.sample(unet, x, steps, config=config) for x, steps in zip(noises, lengths, strict=True)]
    together = [None, None]
    turn = threading.Barrier(2, timeout=60)
    counts = threading.local()

    def meet(x):
        counts.value = getattr(counts, "value", 0) + 1
        if counts.value <= 4:  # in step for the first evaluations, so that full and cached ones interleave
            turn.wait()

    def run(i):
        together[i] = iec.sample(unet, noises[i], lengths[i], config=config)

    with on_evaluation(unet, meet):
        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not turn.broken
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
