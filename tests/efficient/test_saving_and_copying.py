"""A pipeline with a plan is not saved without it, and its deep copies run and are put back on their own."""

import copy
import functools

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_models import ddim_pipe, draw, noise, tiny_unet

import iec
from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig, applied, apply, calibrate, remove
from iec.storage.fingerprint import fingerprint

from .caching import stable_diffusion

STEPS = 4
CONFIGS = {
    "quantized": QuantizationConfig(),
    "packed": QuantizationConfig(storage="packed"),
    "cached and quantized": CacheQuantConfig(2),
    "cached": CacheQuantConfig(2, weights=None),
    "searched": DeepCacheConfig(2, schedule="dps"),
}


def pipe_from(folder):
    ddim_pipe(tiny_unet()).save_pretrained(folder)
    pipe = DDIMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def plan_of(name):
    return calibrate(ddim_pipe(tiny_unet()), CONFIGS[name], STEPS, samples=2, batch_size=2)


@pytest.fixture(params=CONFIGS)
def with_plan(request, tmp_path):
    pipe = pipe_from(tmp_path / "model")
    apply(pipe, plan_of(request.param))
    return pipe


def test_a_plan_is_saved_instead(with_plan, tmp_path):
    for saved in (with_plan, with_plan.unet):
        with pytest.raises(ValueError, match=r"plan\.save_pretrained"):
            saved.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    model = applied(with_plan).model
    remove(with_plan)
    with_plan.save_pretrained(tmp_path / "saved")
    assert fingerprint(UNet2DModel.from_pretrained(tmp_path / "saved" / "unet")) == model


def test_nothing_of_a_pipeline_is_written_before_it_is_refused(tmp_path):
    pipe = stable_diffusion.pipe_of(stable_diffusion.ddim())  # it saves its autoencoder first
    config, inputs = CacheQuantConfig(2, weights=None), {"prompt": stable_diffusion.PROMPTS}
    apply(pipe, calibrate(pipe, config, 2, samples=1, inputs=inputs))
    with pytest.raises(ValueError, match=r"plan\.save_pretrained"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("cached", [False, True])
def test_without_a_plan_a_corrected_pipeline_is_saved_as_it_is(tmp_path, cached):
    pipe = pipe_from(tmp_path / "model")
    expected = draw(pipe)
    iec.enable(pipe)
    if cached:
        apply(pipe, DeepCacheConfig(2))
    pipe.save_pretrained(tmp_path / "saved")
    again = DDIMPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert type(again.unet) is UNet2DModel
    assert torch.equal(draw(again), expected)


def test_a_deep_copy_runs_and_is_put_back_on_its_own(with_plan):
    applied_images = draw(with_plan, STEPS)
    copied = copy.deepcopy(with_plan)
    remove(with_plan)
    float_images = draw(with_plan, STEPS)
    assert not torch.equal(float_images, applied_images)
    assert applied(copied) is not None
    assert torch.equal(draw(copied, STEPS), applied_images)
    with pytest.raises(ValueError, match=f"for {STEPS} steps, but the run has {STEPS + 1}"):
        draw(copied, STEPS + 1)
    remove(copied)
    assert type(copied.unet) is UNet2DModel
    assert torch.equal(draw(copied, STEPS), float_images)
    assert copied.unet.conv_in is not with_plan.unet.conv_in


def test_a_deep_copy_of_a_denoiser_is_put_back_on_its_own(with_plan):
    unet, x = with_plan.unet, noise(2, 3, 8, 8)
    copied = copy.deepcopy(unet)
    expected = iec.sample(copied, x, STEPS)
    remove(with_plan)
    assert torch.equal(iec.sample(copied, x, STEPS), expected)
    remove(copied)
    assert torch.equal(iec.sample(copied, x, STEPS), iec.sample(unet, x, STEPS))
