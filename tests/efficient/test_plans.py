"""Calibrated plans: made, saved, loaded, applied to a pipeline or a denoiser, with and without correction, removed."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_models import ddim_pipe, draw, noise, recorded_inputs, tiny_net, tiny_unet

import iec
from iec.efficient import DeepCacheConfig, QuantizationConfig, QuantizationPlan, applied, apply, calibrate, remove
from iec.efficient.quantization.layers import QuantizedLayer
from iec.storage.fingerprint import fingerprint

STEPS = 4
ATTENTION = {"add_attention": True, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}


def unet_of(seed=0):
    return tiny_unet(seed, **ATTENTION)


def pipe_of(seed=0):
    return ddim_pipe(unet_of(seed))


@pytest.fixture(scope="module")
def plan():
    return calibrate(pipe_of(), QuantizationConfig(weights=4), STEPS, samples=4, batch_size=2)


def psnr(a, b):
    return (10 * torch.log10(1 / (a - b).square().mean())).item()


def same_grid(a, b):
    assert torch.equal(a.delta, b.delta)
    assert torch.equal(a.zero_point, b.zero_point)
    assert a.bits == b.bits


# Saving


def test_a_plan_is_the_same_after_a_round_trip(plan, tmp_path):
    plan.save_pretrained(tmp_path / "plan")
    loaded = QuantizationPlan.from_pretrained(tmp_path / "plan")
    assert (loaded.config, loaded.num_steps, loaded.model) == (plan.config, STEPS, plan.model)
    assert loaded.activations.keys() == plan.activations.keys()
    for key, grid in plan.activations.items():
        same_grid(loaded.activations[key], grid)
    assert loaded.weights.keys() == plan.weights.keys()
    for name, grids in plan.weights.items():
        assert len(loaded.weights[name]) == len(grids)
        for a, b in zip(loaded.weights[name], grids, strict=True):
            same_grid(a, b)
    assert any(len(grids) == 2 for grids in plan.weights.values())
    images = []
    for source in (plan, tmp_path / "plan", str(tmp_path / "plan")):
        pipe = pipe_of()
        apply(pipe, source)
        images.append(draw(pipe))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_saving_replaces_an_older_plan(plan, tmp_path):
    plan.save_pretrained(tmp_path)
    (tmp_path / "stray").touch()
    plan.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.safetensors"]


def spoiled(folder, name, content):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "plan.json").unlink(), r"no plan\.json in it"),
        (lambda f: (f / "plan.safetensors").unlink(), r"no plan\.safetensors in it"),
        (lambda f: spoiled(f, "plan.json", b"{"), r"plan\.json' is corrupt"),
        (lambda f: spoiled(f, "plan.json", b"[]"), r"plan\.json' is corrupt"),
        (lambda f: spoiled(f, "plan.json", b"\xff\xfe"), r"plan\.json' is corrupt"),
        (lambda f: spoiled(f, "plan.safetensors", b"12345678"), r"plan\.safetensors' is corrupt"),
        (lambda f: edit(f, schema=2), "has schema 2, but this version of iec reads schema 1"),
        (lambda f: edit(f, bits={"weight/conv_in:7": 8}), "incomplete"),
        (lambda f: edit(f, config={"bits": 3}), "incomplete"),
        (lambda f: edit(f, config={"weights": 11}), r"weights must lie in 2\.\.8"),
    ],
)
def test_a_missing_or_corrupt_or_newer_plan_is_refused(plan, tmp_path, spoil, message):
    plan.save_pretrained(tmp_path)
    spoil(tmp_path)
    pipe = pipe_of()
    with pytest.raises(ValueError, match=message):
        apply(pipe, tmp_path)
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel


def edit(folder, **changes):
    settings = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**settings, **changes}))


# Applying


@pytest.mark.parametrize("storage", ["simulate", "packed"])
def test_a_pipeline_runs_quantized_and_remove_gives_its_bits_back(plan, storage):
    pipe = pipe_of()
    expected, weights = draw(pipe), fingerprint(pipe.unet)
    apply(pipe, plan, storage, keep_original=True)
    assert applied(pipe) == replace(plan, config=replace(plan.config, storage=storage, keep_original=True))
    quantized = draw(pipe)
    assert not torch.equal(quantized, expected)
    assert psnr(quantized, expected) > 20
    remove(pipe)
    assert applied(pipe) is None
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    assert fingerprint(pipe.unet) == weights
    assert torch.equal(draw(pipe), expected)


def test_more_bits_are_nearer_to_full_precision():
    expected, errors = draw(pipe_of(), seed=5), []
    for bits in (8, 4, 2):
        pipe = pipe_of()
        apply(pipe, calibrate(pipe, QuantizationConfig(weights=bits), STEPS, samples=4, batch_size=4))
        errors.append(psnr(draw(pipe, seed=5), expected))
    assert errors[0] > errors[1] + 3 > errors[2] + 6


def test_it_works_without_and_with_a_correction_and_as_in_iec_sample(plan):
    pipe = pipe_of()
    apply(pipe, plan)
    plain = draw(pipe)
    iec.enable(pipe)
    corrected = draw(pipe)
    assert iec.summary(pipe).corrected == list(range(STEPS))
    assert not torch.equal(corrected, plain)
    remove(pipe)
    iec.disable(pipe)
    assert type(pipe) is DDIMPipeline


def test_a_bare_denoiser_runs_in_iec_sample(plan):
    unet = unet_of()
    x = noise(2, 3, 8, 8)
    expected = iec.sample(unet, x, STEPS)
    apply(unet, plan)
    quantized = iec.sample(unet, x, STEPS)
    assert not torch.equal(quantized, expected)
    with pytest.raises(RuntimeError, match="outside a sampling run"):
        unet(x, 5)
    remove(unet)
    assert torch.equal(iec.sample(unet, x, STEPS), expected)


def test_a_run_of_another_length_is_refused_before_its_first_evaluation(plan):
    pipe = pipe_of()
    apply(pipe, plan)
    expected = draw(pipe)
    with (
        recorded_inputs(pipe.unet) as inputs,
        pytest.raises(ValueError, match="calibrated for 4 steps, but the run has 5"),
    ):
        draw(pipe, STEPS + 1)
    assert inputs == []
    assert torch.equal(draw(pipe), expected)


def test_another_model_is_refused_and_left_alone(plan):
    pipe = pipe_of(seed=1)
    expected = draw(pipe)
    with pytest.raises(ValueError, match="calibrated for a model with fingerprint"):
        apply(pipe, plan)
    assert type(pipe) is DDIMPipeline
    assert torch.equal(draw(pipe), expected)
    with pytest.raises(TypeError, match="but the denoiser is a TinyNet"):
        apply(ddim_pipe(tiny_net()), plan)


def test_apply_twice_replaces_and_a_refusal_keeps_the_first(plan):
    pipe = pipe_of()
    apply(pipe, DeepCacheConfig(2))
    cached = draw(pipe)
    apply(pipe, plan)
    quantized = draw(pipe)
    apply(pipe, plan)
    assert torch.equal(draw(pipe), quantized)
    assert not any(isinstance(module, QuantizedLayer) for module in pipe.unet.conv_in.original.modules())
    for refused in (replace(plan, model="0" * 16), DeepCacheConfig(2, branch=99)):
        with pytest.raises(ValueError, match=r"fingerprint|Branch 99"):
            apply(pipe, refused)
        assert applied(pipe) is plan
        assert torch.equal(draw(pipe), quantized)
    apply(pipe, DeepCacheConfig(2))
    assert torch.equal(draw(pipe), cached)
    remove(pipe)
    assert torch.equal(draw(pipe), draw(pipe_of()))


def test_without_the_original_nothing_can_be_removed_or_replaced(plan):
    pipe = pipe_of()
    apply(pipe, plan, "packed", keep_original=False)
    expected, small = draw(pipe), applied(pipe)
    for attempt in (lambda: remove(pipe), lambda: apply(pipe, DeepCacheConfig(2)), lambda: apply(pipe, plan)):
        with pytest.raises(ValueError, match="were not kept"):
            attempt()
    assert applied(pipe) is small
    assert torch.equal(draw(pipe), expected)


# Calibrating


def test_calibration_leaves_the_pipeline_alone_and_is_reproducible(plan):
    pipe = pipe_of()
    expected = draw(pipe)
    again = calibrate(pipe, QuantizationConfig(weights=4), STEPS, samples=4, batch_size=2)
    assert torch.equal(draw(pipe), expected)
    for key, grid in plan.activations.items():
        same_grid(again.activations[key], grid)


@pytest.mark.parametrize("technique", ["cache", "plan"])
def test_only_the_full_model_is_calibrated(plan, technique):
    pipe = pipe_of()
    apply(pipe, plan if technique == "plan" else DeepCacheConfig(2))
    with pytest.raises(ValueError, match="remove what is applied"):
        calibrate(pipe, QuantizationConfig(), STEPS)


def test_other_arguments_are_refused(plan):
    for call in (
        lambda: calibrate(pipe_of(), plan, STEPS),
        lambda: calibrate(unet_of(), QuantizationConfig(), STEPS),
        lambda: apply(pipe_of(), QuantizationConfig()),
    ):
        with pytest.raises(TypeError, match=r"QuantizationConfig|pipeline is needed"):
            call()
