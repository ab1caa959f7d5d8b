"""Bias correction: on average over the calibration's inputs, rounding the weights then adds nothing."""

import pytest
import torch
from tiny_models import ddim_pipe, draw, noise, seeded, tiny_unet
from torch import nn

from iec.efficient import (
    CacheQuantConfig,
    QuantizationConfig,
    ReconstructionConfig,
    apply,
    calibrate,
    load_plan,
    remove,
)
from iec.efficient.quantization.bias import ChannelMeans, bias_shifts
from iec.efficient.quantization.coverage import Coverage, LayerTarget
from iec.efficient.quantization.layers import channel_axis
from iec.efficient.quantization.quantizer import fake_quantize
from iec.efficient.quantization.ranges import search_weight
from iec.method.noise import image_generator
from iec.models.loading import load_pipeline

STEPS = 4
W4 = QuantizationConfig(weights=4, bias_correction=True)
LAYERS = {  # a layer, and the shape of its input
    "linear": (lambda: nn.Linear(6, 4), (50, 3, 6)),
    "conv": (lambda: nn.Conv2d(6, 4, 3), (50, 6, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (50, 6, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), (50, 6, 5)),
}


def means_of(x, axis, groups=2, group=1, channels=None):
    means = ChannelMeans(groups, channels or x.shape[axis])
    for part in torch.split(x, 20):
        means.add(group, part, axis)
    return means


@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_output_is_that_of_the_float_layer(name):
    build, shape = LAYERS[name]
    layer, axis = seeded(build()), channel_axis(build())
    # Channels differ, and are alike everywhere in a picture, so that the mean of a channel says all.
    alike = shape if name == "linear" else (*shape[:2], *[1] * (len(shape) - 2))
    x = (2 + noise(*alike, seed=1)).expand(shape)
    covered = Coverage((LayerTarget("0", (layer.weight.shape[1],), axis, 4, 8),), (), (), QuantizationConfig())
    grid = search_weight(layer.weight, 4)
    shift = bias_shifts(nn.Sequential(layer), covered, {"0": [grid]}, {"0:0": means_of(x, axis)})["0"]
    assert shift.shape == (2, 4)
    assert shift[0].abs().max() == 0  # a group that saw nothing
    rounded = seeded(build())
    rounded.weight.data = fake_quantize(layer.weight, grid)
    with torch.no_grad():
        missing = (layer(x) - rounded(x)).movedim(axis, 0).flatten(1).mean(1)
    assert missing.abs().max() > 1e-3
    torch.testing.assert_close(shift[1], missing, atol=1e-5, rtol=1e-4)


def test_the_parts_of_a_split_layer_add_up_and_the_first_may_be_left_out():
    layer, x = seeded(nn.Linear(6, 4)), 1 + noise(40, 6)
    covered = Coverage((LayerTarget("0", (2, 4), -1, 4, 8),), (), (), QuantizationConfig())
    grids = [search_weight(part, 4) for part in layer.weight.detach().split([2, 4], 1)]
    means = {f"0:{i}": means_of(part, -1) for i, part in enumerate(x.split([2, 4], 1))}
    both = bias_shifts(nn.Sequential(layer), covered, {"0": grids}, means)["0"][1]
    second = bias_shifts(nn.Sequential(layer), covered, {"0": grids}, means, ["0"])["0"][1]
    errors = [
        (part - fake_quantize(part, grid)) @ own.mean(0)
        for part, grid, own in zip(layer.weight.detach().split([2, 4], 1), grids, x.split([2, 4], 1), strict=True)
    ]
    torch.testing.assert_close(both, errors[0] + errors[1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(second, errors[1], atol=1e-6, rtol=1e-4)


def test_it_brings_the_embedded_model_nearer_to_the_float_one_on_other_noise():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def sampled(seed):
        generators = [image_generator(seed, i) for i in range(4)]
        return torch.as_tensor(pipe(generator=generators, num_inference_steps=STEPS, output_type="np").images)

    expected = [sampled(seed) for seed in range(3)]
    errors = []
    for config in (QuantizationConfig(), QuantizationConfig(bias_correction=True)):
        apply(pipe, calibrate(pipe, config, STEPS, samples=4, batch_size=4))
        errors.append([(sampled(seed) - expected[seed]).square().mean().item() for seed in range(3)])
        remove(pipe)
    assert all(corrected < 0.5 * plain for plain, corrected in zip(*errors, strict=True))


@pytest.mark.parametrize("storage", ["simulate", "packed"])
@pytest.mark.parametrize("config", [W4, CacheQuantConfig(2, weights=4, bias_correction=True)], ids=["alone", "cached"])
def test_a_plan_keeps_it(tmp_path, config, storage):
    pipe = ddim_pipe(tiny_unet())
    plan = calibrate(pipe, config, STEPS, samples=2, batch_size=2)
    plan.save_pretrained(tmp_path / "plan")
    read = load_plan(tmp_path / "plan")
    assert read.config == config
    images = []
    for one in (plan, read):
        apply(pipe, one, storage, keep_original=True)
        images.append(draw(pipe, STEPS))
        remove(pipe)
    assert torch.equal(*images)


def test_groups_of_steps_share_it():
    pipe = ddim_pipe(tiny_unet())
    config = QuantizationConfig(weights=4, bias_correction=True, steps_per_group=3)
    plan = calibrate(pipe, config, STEPS, samples=2, batch_size=2)
    apply(pipe, plan)
    shift = pipe.unet.conv_out.shift
    assert plan.shifts["conv_out"].shape == (2, 3)
    assert shift.shape == (STEPS, 3)
    assert torch.equal(shift, plan.shifts["conv_out"][[0, 0, 0, 1]])


def test_beside_a_cache_the_reentered_parts_are_left_to_dec():
    pipe = ddim_pipe(tiny_unet())
    plan = calibrate(pipe, CacheQuantConfig(2, weights=4, bias_correction=True), STEPS, samples=2, batch_size=2)
    (name, *_), shifts = plan.layers, plan.quantization.shifts
    apply(pipe, plan)
    layer = pipe.unet.get_submodule(name)
    torch.testing.assert_close(layer.shift, plan.layers[name][1] + shifts[name])
    assert torch.equal(layer.scale, plan.layers[name][0])
    remove(pipe)
    covered = calibrate(pipe, W4, STEPS, samples=2, batch_size=2).shifts
    assert set(shifts) == set(covered)


def test_what_is_refused():
    for make, error, words in (
        (lambda: QuantizationConfig(bias_correction=1), TypeError, "must be True or False"),
        (
            lambda: QuantizationConfig(bias_correction=True, reconstruction=ReconstructionConfig()),
            ValueError,
            "leave out the bias correction",
        ),
        (lambda: CacheQuantConfig(weights=None, bias_correction=True), ValueError, "give the bits of the weights"),
    ):
        with pytest.raises(error, match=words):
            make()
