"""Adapters are found when a call starts and gone when it ends, however it ends."""

import importlib
import re

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.hooks import HookRegistry, ModelHook, apply_first_block_cache

import iec
from iec.method import Clock, current_clock
from iec.pipelines.caches import _BY_NAME, _LOSSLESS, caches_of

from .networks import GUIDANCE, Flux, Wan, _quiet
from .techniques import TECHNIQUES, Technique, first_block, magnitudes, parametrized, pyramid, taylor

one_of_each = parametrized(list({parameter.values[0].name: parameter for parameter in TECHNIQUES}.values()))
# What a cache keeps between evaluations, and the statistics of cache-dit's latest run.
STATE = re.compile(r"state|_state_cache|cached_output|.*_timestep|_cached_context_manager|_current_.*")
STATISTICS = re.compile(r"_(cfg_|accumulated_|cached_steps|residual_diffs)")
ZERO = iec.IECConfig(0.0, cached_steps=True, cache="bypass", tolerance=0.0)


def attributes(network):
    """What every module, hook, function reference and manager of `network` holds, but for the caches' own state."""
    found = {}
    for module in network.modules():
        hooks = module._diffusers_hook.hooks.values() if hasattr(module, "_diffusers_hook") else ()
        others = [vars(module)[name] for name in ("_context_manager", "helper") if name in vars(module)]
        for owner in (module, *hooks, *(hook.fn_ref for hook in hooks), *others):
            for name, value in vars(owner).items():
                if not STATE.fullmatch(name) and not STATISTICS.match(name):
                    found[id(owner), name] = id(value)
    return found


class StoppedError(Exception):
    pass


@one_of_each
@pytest.mark.parametrize("policy", ["refresh", "bypass", "reuse"])
def test_nothing_is_left_behind_after_a_run_or_an_interruption(technique, policy):
    pipe = technique.pipe()
    network = technique.network(pipe)
    technique.draw(pipe)  # cache contexts are made, and the lists of hooks under a network
    if hasattr(pipe, "helper"):
        network.helper = pipe.helper  # DeepCache's, to be looked at with the rest
    before = attributes(network)
    iec.enable(pipe, iec.IECConfig(cache=policy, cached_steps=True))
    technique.draw(pipe)
    assert attributes(network) == before

    def stop(module, args):
        if (current_clock().step, current_clock().pass_index) == (2, 1):
            raise StoppedError

    last = network.conv_out if hasattr(network, "conv_out") else network.proj_out
    handle = last.register_forward_pre_hook(stop)  # in the middle of a correction pass
    with pytest.raises(StoppedError):
        technique.draw(pipe)
    handle.remove()
    assert attributes(network) == before

    def interrupt(pipe, i, t, tensors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        technique.draw(pipe, callback_on_step_end=interrupt)
    assert attributes(network) == before
    iec.disable(pipe)
    technique.disable(pipe)
    assert torch.equal(technique.draw(pipe), technique.draw(technique.pipe(enabled=False)))


@one_of_each
def test_a_cache_may_be_enabled_before_or_after_correction(technique):
    results = []
    for cache_first in (True, False):
        pipe = technique.pipe(enabled=cache_first)
        iec.enable(pipe)
        if not cache_first:
            technique.enable(pipe)
        results.append((technique.draw(pipe), iec.summary(pipe).corrected))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_a_cache_that_a_callback_disables_is_gone_with_everything_of_ours():
    technique = Technique("FirstBlockCache", Flux, first_block(0.75))
    pipe, plain = technique.pipe(), technique.pipe(enabled=False)

    def disable(pipe, i, t, tensors):
        if i == 2:
            pipe.transformer.disable_cache()
        return {}

    without = technique.draw(technique.pipe(), callback_on_step_end=disable)
    with iec.enabled(pipe, ZERO):
        assert torch.equal(technique.draw(pipe, callback_on_step_end=disable), without)
    assert torch.equal(technique.draw(pipe), technique.draw(plain))
    ours = [
        value
        for module in pipe.transformer.modules()
        for value in vars(module).values()
        if type(value).__module__.startswith("iec.")
    ]
    assert ours == []


def test_two_caches_on_one_network_are_both_put_back():
    technique = Technique("PyramidAttentionBroadcast", Flux, pyramid(2))
    results = []
    for enabled in (False, True):
        pipe = technique.pipe()
        apply_first_block_cache(pipe.transformer, first_block(0.75)(None))
        if enabled:
            iec.enable(pipe, iec.IECConfig(0.0, 2, cached_steps=True, cache="reuse", tolerance=0.0))
        results.append(technique.draw(pipe))
    assert torch.equal(*results)
    assert (results[0] - technique.draw(technique.pipe())).abs().max() > 1e-2
    assert iec.summary(pipe).cached_evaluations > 0


@pytest.mark.parametrize("policy", ["bypass", "reuse"])
def test_two_experts_with_a_cache_each(policy):
    kind, results = Wan(), []
    for enabled in (False, True):
        experts = {"transformer": kind.network(), "transformer_2": kind.network()}
        for expert in experts.values():
            expert.enable_cache(taylor([r"blocks\.\d+\.attn\d"])(None))
        parts = dict.fromkeys(kind.parts.split())
        scheduler = FlowMatchEulerDiscreteScheduler()
        pipe = _quiet(WanPipeline(**parts, scheduler=scheduler, **experts, boundary_ratio=0.5))
        if enabled:
            iec.enable(pipe, iec.IECConfig(0.0, 2, cached_steps=True, cache=policy, tolerance=0.0))
        results.append(kind.draw(pipe, guidance_scale_2=GUIDANCE))
    assert torch.equal(*results)
    assert {record.cached > 0 for record in iec.summary(pipe).steps} == {False, True}


def test_a_hook_with_an_unknown_state_is_refused_before_anything_runs():
    class Unknown(ModelHook):
        _is_stateful = True

    pipe = Flux().pipe()
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer.proj_out)
    registry.register_hook(Unknown(), "unknown_cache")
    before = attributes(pipe.transformer)
    iec.enable(pipe)
    with pytest.raises(iec.IECUnsupportedError, match="'unknown_cache'"):
        Flux().draw(pipe, callback_on_step_end=pytest.fail)
    assert attributes(pipe.transformer) == before


def test_teacache_is_refused_by_name():
    pipe = Flux().pipe()
    pipe.transformer.enable_teacache = True
    iec.enable(pipe)
    with pytest.raises(iec.IECUnsupportedError, match="TeaCache"):
        Flux().draw(pipe, callback_on_step_end=pytest.fail)
    pipe.transformer.enable_teacache = False
    Flux().draw(pipe)


def test_a_cached_network_serves_one_run_at_a_time():
    """Without correction too, its one state would mix the features of two runs."""
    technique = Technique("MagCache", Flux, magnitudes)
    pipe = technique.pipe()
    other = Flux().pipe(pipe.transformer)
    iec.enable(pipe)
    iec.enable(other)

    def sample_other(pipe, i, t, tensors):
        technique.draw(other)

    with pytest.raises(RuntimeError, match="cannot serve two"):
        technique.draw(pipe, callback_on_step_end=sample_other)
    pipe.transformer._reset_stateful_cache()  # the aborted run left its features
    expected = technique.draw(pipe)
    assert torch.equal(technique.draw(other), expected)


def test_an_uncached_network_is_shared_freely():
    with caches_of(Flux().network(), Clock(1)) as caches:
        assert caches == []
    network = Flux().network()
    with caches_of(network, Clock(1)), caches_of(network, Clock(1)):
        pass


@pytest.mark.parametrize("cached", [False, True])
def test_the_modules_are_walked_once_per_call_not_per_step(cached):
    technique = Technique("FirstBlockCache", Flux, first_block(0.75))
    pipe = technique.pipe(enabled=cached)
    walks = []

    class Walked(type(pipe.transformer)):
        def named_modules(self, *args, **kwargs):
            walks.append(1)
            return super().named_modules(*args, **kwargs)

    def walked(steps):
        walks.clear()
        technique.draw(pipe, steps=steps)
        return len(walks)

    pipe.transformer.__class__ = Walked
    technique.draw(pipe)
    without = [walked(2), walked(6)]
    iec.enable(pipe)
    assert [walked(2), walked(6)] == [walks + 1 for walks in without]


def test_the_names_are_those_of_diffusers():
    modules = "first_block_cache pyramid_attention_broadcast faster_cache taylorseer_cache mag_cache sea_cache"
    names = set()
    for module in [*modules.split(), "text_kv_cache"]:
        constants = vars(importlib.import_module(f"diffusers.hooks.{module}"))
        names |= {value for name, value in constants.items() if name.endswith("_HOOK")}
    assert names == set(_BY_NAME) | _LOSSLESS
