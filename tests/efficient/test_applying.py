"""`apply` and `remove` on pipelines and on bare denoisers."""

import copy

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from tiny_models import ddim_pipe, draw, noise, recorded_inputs, tiny_unet
from torch.utils.flop_counter import FlopCounterMode

import iec
from iec.efficient import DeepCacheConfig, applied, apply, remove

NONE = iec.IECConfig(num_iterations=0)


def flops_of(pipe, steps=4):
    with FlopCounterMode(display=False) as counter:
        draw(pipe, steps)
    return counter.get_total_flops()


def test_a_pipeline_runs_cached_and_remove_gives_its_bits_back():
    pipe = ddim_pipe(tiny_unet())
    expected, cost = draw(pipe), flops_of(pipe)
    apply(pipe, DeepCacheConfig(2))
    assert not torch.equal(draw(pipe), expected)
    assert flops_of(pipe) < cost
    remove(pipe)
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    assert torch.equal(draw(pipe), expected)
    assert flops_of(pipe) == cost


def test_an_interval_of_1_is_bit_identical():
    pipe = ddim_pipe(tiny_unet())
    expected = draw(pipe, eta=1.0)
    apply(pipe, DeepCacheConfig(1))
    assert torch.equal(draw(pipe, eta=1.0), expected)


def test_a_ddpm_pipeline_runs_cached():
    pipe = DDPMPipeline(tiny_unet(), DDPMScheduler(beta_end=2e-3))
    pipe.set_progress_bar_config(disable=True)
    cost = flops_of(pipe)
    apply(pipe, DeepCacheConfig(4))
    assert flops_of(pipe) < cost


def test_apply_twice_replaces():
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, DeepCacheConfig(4, branch=0))
    apply(pipe, DeepCacheConfig(2, branch=1))
    once = ddim_pipe(tiny_unet())
    apply(once, DeepCacheConfig(2, branch=1))
    assert torch.equal(draw(pipe), draw(once))
    assert flops_of(pipe) == flops_of(once)
    assert applied(pipe) == DeepCacheConfig(2, branch=1)
    remove(pipe)
    assert type(pipe.unet) is UNet2DModel
    assert applied(pipe) is None
    remove(pipe)
    assert type(pipe) is DDIMPipeline


def test_a_denoiser_runs_in_iec_sample_as_in_a_pipeline():
    unet = tiny_unet()
    apply(unet, DeepCacheConfig(2))
    assert applied(unet) == DeepCacheConfig(2)
    pipe = ddim_pipe(unet)
    with pytest.raises(RuntimeError, match="outside a sampling run"):
        draw(pipe)  # this pipeline was neither enabled nor applied to
    x = noise(2, 3, 8, 8)
    state, summary = iec.sample(unet, x, 6, config=NONE, return_summary=True)
    assert (summary.full_evaluations, summary.cached_evaluations) == (3, 3)
    assert not torch.equal(state, iec.sample(tiny_unet(), x, 6, config=NONE))
    remove(unet)
    assert torch.equal(iec.sample(unet, x, 6, config=NONE), iec.sample(tiny_unet(), x, 6, config=NONE))


def test_enabling_and_applying_end_independently():
    pipe = ddim_pipe(tiny_unet())
    plain = draw(pipe)
    apply(pipe, DeepCacheConfig(2))
    cached = draw(pipe)
    iec.enable(pipe)
    both = draw(pipe)
    assert iec.summary(pipe).cached_evaluations == 2
    iec.disable(pipe)
    assert torch.equal(draw(pipe), cached)
    iec.enable(pipe)
    assert torch.equal(draw(pipe), both)
    remove(pipe)
    corrected = draw(pipe)
    assert iec.summary(pipe).cached_evaluations == 0
    iec.disable(pipe)
    assert type(pipe) is DDIMPipeline
    assert torch.equal(draw(pipe), plain)
    assert not torch.equal(corrected, both)


def test_the_order_of_enable_and_apply_does_not_matter():
    images = []
    for first in ("enable", "apply"):
        pipe = ddim_pipe(tiny_unet())
        actions = {"enable": lambda p=pipe: iec.enable(p), "apply": lambda p=pipe: apply(p, DeepCacheConfig(2))}
        actions[first]()
        actions["apply" if first == "enable" else "enable"]()
        images.append(draw(pipe))
    assert torch.equal(*images)


def test_a_refused_configuration_changes_nothing():
    pipe = ddim_pipe(tiny_unet())
    with pytest.raises(ValueError, match="Branch 9"):
        apply(pipe, DeepCacheConfig(2, branch=9))
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    apply(pipe, DeepCacheConfig(2))
    cached = draw(pipe)
    with pytest.raises(ValueError, match="Branch 9"):
        apply(pipe, DeepCacheConfig(2, branch=9))
    assert torch.equal(draw(pipe), cached)


@pytest.mark.parametrize("target", [None, {}, "model"])
def test_another_target_is_refused(target):
    for call in (lambda: apply(target, DeepCacheConfig()), lambda: remove(target), lambda: applied(target)):
        with pytest.raises(TypeError, match="pipeline or a denoiser"):
            call()


@pytest.mark.parametrize("config", [None, 5, iec.IECConfig()])
def test_another_configuration_is_refused(config):
    with pytest.raises(TypeError, match="DeepCacheConfig"):
        apply(tiny_unet(), config)


def test_an_interval_longer_than_the_run_is_refused_before_any_evaluation():
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, DeepCacheConfig(5))
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match="5 is longer than the run of 4"):
        draw(pipe, 4)
    assert inputs == []
    draw(pipe, 5)
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match="5 is longer than the run of 4"):
        iec.sample(pipe.unet, noise(1, 3, 8, 8), 4)
    assert inputs == []


@torch.no_grad()
def test_an_applied_unet_saves_and_loads_as_itself(tmp_path):
    unet = tiny_unet()
    x = noise(1, 3, 8, 8)
    expected = unet(x, 5).sample
    apply(unet, DeepCacheConfig())
    unet.save_pretrained(tmp_path)
    assert '"_class_name": "UNet2DModel"' in (tmp_path / "config.json").read_text()
    loaded = UNet2DModel.from_pretrained(tmp_path)
    assert type(loaded) is UNet2DModel
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), unet.parameters(), strict=True))
    torch.testing.assert_close(loaded(x, 5).sample, expected)  # loaded weights are aligned otherwise


def test_an_applied_pipeline_saves_and_loads_as_itself(tmp_path):
    pipe = ddim_pipe(tiny_unet())
    expected = draw(pipe)
    apply(pipe, DeepCacheConfig(2))
    pipe.save_pretrained(tmp_path)
    loaded = DDIMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.unet) is UNet2DModel
    torch.testing.assert_close(draw(loaded), expected)


def test_a_deep_copy_of_an_applied_unet_caches_on_its_own():
    unet = tiny_unet()
    apply(unet, DeepCacheConfig(2))
    copied = copy.deepcopy(unet)
    x = noise(2, 3, 8, 8)
    expected = iec.sample(unet, x, 6)
    assert torch.equal(iec.sample(copied, x, 6), expected)
    remove(unet)
    assert applied(copied) == DeepCacheConfig(2)
    assert torch.equal(iec.sample(copied, x, 6), expected)

    # One run that calls both: neither sees the other's feature.
    apply(unet, DeepCacheConfig(2))
    other = tiny_unet(seed=1)
    apply(other, DeepCacheConfig(2))
    alone = iec.sample(other, x, 6, config=NONE), iec.sample(unet, x, 6, config=NONE)
    inner = []

    def both(x, t):
        inner.append(unet(noise(2, 3, 8, 8, seed=len(inner)), t).sample)
        return other(x, t)

    assert torch.equal(iec.sample(both, x, 6, config=NONE), alone[0])


def test_a_deep_copy_of_an_applied_pipeline_works():
    """A pipeline's copy is called as a pipeline; it must not be told to call it through its pipeline."""
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, DeepCacheConfig(2))
    expected = draw(pipe)
    copied = copy.deepcopy(pipe)
    assert torch.equal(draw(copied), expected)


def test_apply_and_remove_during_a_call_are_refused():
    unet = tiny_unet()
    pipe = ddim_pipe(unet)
    apply(pipe, DeepCacheConfig(2))
    expected, refused = draw(pipe), []

    def change(module, args):
        for action in (lambda: apply(pipe, DeepCacheConfig(4)), lambda: remove(pipe)):
            with pytest.raises(RuntimeError, match="between its calls"):
                action()
            refused.append(action)

    handle = unet.conv_in.register_forward_pre_hook(change)
    assert torch.equal(draw(pipe), expected)
    handle.remove()
    assert len(refused) == 8
    assert applied(pipe) == DeepCacheConfig(2)
