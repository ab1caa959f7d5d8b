"""Packed weights: what they save, and float weights that are read again from the folder that the model came from."""

import gc
import shutil
import weakref

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_models import ddim_pipe, draw, tiny_unet

from iec.efficient import (
    CacheQuantConfig,
    DeepCacheConfig,
    QuantizationConfig,
    applied,
    apply,
    calibrate,
    model_bytes,
    remove,
)
from iec.efficient.quantization.layers import QuantizedLayer, operation_of

STEPS = 4
WIDE = {"block_out_channels": (32, 64), "add_attention": True, "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    ddim_pipe(tiny_unet(**WIDE)).save_pretrained(folder)
    return folder


def loaded(folder, dtype=torch.float32, **settings):
    pipe = DDIMPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, **settings)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last).requires_grad_(False)
    return pipe


@pytest.fixture(scope="module")
def plan(folder):
    config = QuantizationConfig(weights=4, storage="packed")
    return calibrate(loaded(folder), config, STEPS, samples=2, batch_size=2)


def layout(network):
    """All that `remove` must give back, beside the values."""
    return {
        name: (parameter.shape, parameter.stride(), parameter.dtype, parameter.device, parameter.requires_grad)
        for name, parameter in network.named_parameters()
    }


def same_network(network, expected):
    assert layout(network) == layout(expected)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), expected.parameters(), strict=True))
    modules = zip(network.modules(), expected.modules(), strict=True)
    assert all((type(a), a.training) == (type(b), b.training) for a, b in modules)


# What it saves


def test_the_float_weights_leave_the_memory(folder, plan):
    pipe = loaded(folder)
    full = model_bytes(pipe)
    assert full == 4 * sum(parameter.numel() for parameter in pipe.unet.parameters())
    floats = [module for module in pipe.unet.modules() if operation_of(module) is not None]
    watched = [weakref.ref(watch) for layer in floats for watch in (layer, layer.weight)]
    floats.clear()
    apply(pipe, plan)
    gc.collect()
    assert len(watched) > 40
    assert not [ref for ref in watched if ref() is not None]
    codes = sum(layer.weight.shapes[0].numel() for layer in quantized(pipe.unet))
    assert model_bytes(pipe.unet) == model_bytes(pipe)
    assert model_bytes(pipe) < 0.35 * full  # an eighth for 4 bits, with grids and biases in float
    assert model_bytes(pipe) > codes / 2
    for store in ({"storage": "simulate"}, {"storage": "packed", "keep_original": True}):
        apply(pipe, plan, **store)
        assert model_bytes(pipe) > full
    remove(pipe)
    assert model_bytes(pipe) == full


def quantized(network):
    return [module for module in network.modules() if isinstance(module, QuantizedLayer)]


# Putting back what was not kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_remove_reads_the_float_weights_again_bit_for_bit(folder, dtype):
    pipe = loaded(folder, dtype)
    pipe.unet.mid_block.train()
    pipe.unet.conv_in.weight.requires_grad_(True)
    calls = []
    handle = pipe.unet.conv_out.register_forward_hook(lambda *args: calls.append(1))
    expected, reference = draw(pipe), loaded(folder, dtype).unet
    reference.mid_block.train()
    reference.conv_in.weight.requires_grad_(True)
    plan = calibrate(pipe, QuantizationConfig(storage="packed"), STEPS, samples=2, batch_size=2)
    apply(pipe, plan)
    assert not torch.equal(draw(pipe), expected)
    remove(pipe)
    same_network(pipe.unet, reference)
    assert type(pipe) is DDIMPipeline
    calls.clear()
    assert torch.equal(draw(pipe), expected)
    assert len(calls) == STEPS
    handle.remove()
    draw(pipe)
    assert len(calls) == STEPS


def test_what_became_of_the_network_meanwhile_stays(folder, plan):
    pipe = loaded(folder)
    apply(pipe, plan)
    pipe.unet.to(torch.float64).train()
    remove(pipe)
    same_network(pipe.unet, loaded(folder).unet.to(torch.float64).train())


def test_another_plan_takes_the_place_of_a_packed_one(folder, plan):
    pipe = loaded(folder)
    apply(pipe, plan)
    packed = draw(pipe)
    apply(pipe, DeepCacheConfig(2))
    cached = draw(pipe)
    apply(pipe, plan)
    assert torch.equal(draw(pipe), packed)
    with pytest.raises(ValueError, match="Branch 99"):
        apply(pipe, DeepCacheConfig(2, branch=99))
    assert torch.equal(draw(pipe), packed)
    other = loaded(folder)
    apply(other, DeepCacheConfig(2))
    assert torch.equal(draw(other), cached)


def test_packed_and_simulated_weights_draw_the_same(folder, plan):
    pipe = loaded(folder)
    apply(pipe, plan)
    packed = draw(pipe)
    apply(pipe, plan, storage="simulate")
    assert torch.equal(draw(pipe), packed)


def test_cachequant_is_put_back_too(folder):
    pipe, config = loaded(folder), CacheQuantConfig(2, storage="packed")
    expected, full = draw(pipe), model_bytes(pipe)
    apply(pipe, calibrate(pipe, config, STEPS, samples=2, batch_size=2))
    assert applied(pipe).quantization.config.keep_original is None
    assert model_bytes(pipe) < 0.6 * full
    remove(pipe)
    assert torch.equal(draw(pipe), expected)


def test_a_bare_network_a_relative_path_and_a_variant(folder, plan, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    bare = UNet2DModel.from_pretrained(folder.name, subfolder="unet").requires_grad_(False)
    expected = UNet2DModel.from_pretrained(folder / "unet").requires_grad_(False)
    apply(bare, plan)
    monkeypatch.chdir(tmp_path)
    remove(bare)
    same_network(bare, expected)
    ddim_pipe(tiny_unet(**WIDE)).save_pretrained(tmp_path / "half", variant="fp16")
    pipe = loaded(tmp_path / "half", variant="fp16")
    apply(pipe, plan)
    remove(pipe)
    same_network(pipe.unet, loaded(folder).unet)


# What cannot be put back


def nowhere(folder):
    return ddim_pipe(tiny_unet(**WIDE))


def emptied_folder(folder):
    other = folder.parent / "emptied"
    shutil.copytree(folder, other, dirs_exist_ok=True)
    pipe = loaded(other)
    shutil.rmtree(other)
    return pipe


def changed(folder):
    other = folder.parent / "changed"
    shutil.copytree(folder, other, dirs_exist_ok=True)
    pipe = loaded(other)
    tiny_unet(seed=1, **WIDE).save_pretrained(other / "unet")
    return pipe


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nowhere, "was not loaded from a folder, so"),
        (emptied_folder, "There are no safetensors weights of this model in '.*', so"),
        (changed, "are not those of this model, so"),
    ],
)
def test_weights_that_cannot_be_read_again_are_said_so_beforehand(folder, plan, model, reason):
    pipe = model(folder)
    expected = draw(pipe)
    with pytest.raises(ValueError, match=f"{reason} its float weights could not be put back: pass keep_original="):
        apply(pipe, plan)
    assert applied(pipe) is None
    assert torch.equal(draw(pipe), expected)
    apply(pipe, plan, keep_original=True)
    remove(pipe)
    assert torch.equal(draw(pipe), expected)
    apply(pipe, plan, keep_original=False)
    packed = draw(pipe)
    with pytest.raises(ValueError, match="were not kept"):
        remove(pipe)
    assert torch.equal(draw(pipe), packed)


def test_weights_that_vanish_or_change_afterwards_are_refused_and_the_model_runs_on(folder, plan, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    pipe = loaded(tmp_path / "model")
    apply(pipe, plan)
    packed = draw(pipe)
    tiny_unet(seed=1, **WIDE).save_pretrained(tmp_path / "model" / "unet")
    for message in ("have changed since", "can no longer be read"):
        with pytest.raises(ValueError, match=message):
            remove(pipe)
        assert torch.equal(draw(pipe), packed)
        shutil.rmtree(tmp_path / "model", ignore_errors=True)


def test_only_quantized_weights_are_stored_in_another_way(folder):
    pipe = loaded(folder)
    cache_only = calibrate(pipe, CacheQuantConfig(2, weights=None), STEPS, samples=2, batch_size=2)
    for technique in (DeepCacheConfig(2), cache_only):
        with pytest.raises(ValueError, match="storage cannot be chosen: nothing is quantized here"):
            apply(pipe, technique, storage="packed")
    assert applied(pipe) is None
