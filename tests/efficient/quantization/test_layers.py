"""Quantized layers against their definition: the grids of the step, the split, the storage."""

import copy

import pytest
import torch
from tiny_models import noise, seeded
from torch import nn
from torch.nn import functional

from iec.efficient.quantization.activations import StepQuantizer, count_groups
from iec.efficient.quantization.layers import QuantizedLayer, operation_of, part_widths
from iec.efficient.quantization.quantizer import Grid, fake_quantize
from iec.efficient.quantization.ranges import search_weight
from iec.method.clock import Clock

LAYERS = {
    "conv": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 4, 3, stride=2, dilation=2, bias=False),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "same padding": lambda: nn.Conv2d(6, 4, 3, padding="same"),
    "conv1d": lambda: nn.Conv1d(6, 4, 3, padding=2),
    "linear": lambda: nn.Linear(6, 4),
    "no bias": lambda: nn.Linear(6, 4, bias=False),
}
STEPS = 3
STORAGES = ["simulate", "packed"]


def build(name):
    return seeded(LAYERS[name]())


def input_of(layer, seed=0):
    shapes = {nn.Conv2d: (2, 6, 9, 9), nn.Conv1d: (2, 6, 9), nn.Linear: (2, 5, 6)}
    return noise(*shapes[type(layer)], seed=seed)


def steps_of(seed=0, bits=8, count=STEPS):
    """A quantizer whose grids differ from step to step."""
    generator = torch.Generator().manual_seed(seed)
    delta = 0.01 + 0.03 * torch.rand(count, generator=generator)
    zero_point = torch.randint(100, 150, (count,), generator=generator).float()
    return StepQuantizer(Grid(delta, zero_point, bits), count)


def grid_of(quantizer, step):
    return Grid(quantizer.delta[step], quantizer.zero_point[step], quantizer.bits)


def at(step, module, x, num_steps=STEPS):
    with Clock(num_steps) as clock, torch.no_grad():
        clock.step = step
        return module(x)


def quantized(layer, bits=8, storage="simulate", split=None, **settings):
    widths = part_widths(layer, split)
    grids = [search_weight(part, bits) for part in torch.split(layer.weight.detach(), widths, 1)]
    return QuantizedLayer(layer, grids, [steps_of(i) for i in range(len(widths))], split, storage, **settings)


# The activation's grid


def test_every_step_has_its_own_grid_by_hand():
    quantizer = StepQuantizer(Grid(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 2.0]), 2), 2)
    x = torch.tensor([-3.0, -0.4, 0.3, 0.9, 9.0])
    assert at(0, quantizer, x, 2).tolist() == [0, 0, 0, 1, 3]
    assert at(1, quantizer, x, 2).tolist() == [-1, -0.5, 0.5, 0.5, 0.5]


def test_steps_may_share_a_grid_in_groups():
    quantizer = StepQuantizer(Grid(torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3), 2), 5, steps_per_group=2)
    largest = [at(step, quantizer, torch.tensor(99.0), 5).item() for step in range(5)]
    assert largest == [3, 3, 6, 6, 12]
    assert [count_groups(10, size) for size in (1, 3, 10, 99)] == [10, 4, 1, 1]


@pytest.mark.parametrize(("steps", "size", "grids"), [(3, 1, 2), (3, 2, 3), (3, 4, 3)])
def test_another_number_of_grids_is_refused(steps, size, grids):
    with pytest.raises(ValueError, match=f"{steps} steps in groups of {size} need"):
        StepQuantizer(Grid(torch.ones(grids), torch.zeros(grids), 8), steps, size)


def test_steps_below_1_are_refused():
    for steps, size in ((0, 1), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            count_groups(steps, size)


def test_a_run_of_another_length_is_refused():
    with pytest.raises(ValueError, match="calibrated for 3 steps, but the run has 4"):
        at(0, steps_of(), torch.zeros(1), num_steps=4)


def test_outside_a_run_it_says_what_to_do():
    with pytest.raises(RuntimeError, match="outside a sampling run"):
        steps_of()(torch.zeros(1))


# The layer


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_quantized_input_and_weight(name, bits, storage):
    layer = build(name)
    module, x = quantized(layer, bits, storage), input_of(layer)
    outputs = []
    for step in range(STEPS):
        expected = copy.deepcopy(layer)
        expected.weight.data = fake_quantize(layer.weight, search_weight(layer.weight, bits))
        with torch.no_grad():
            expected = expected(fake_quantize(x, grid_of(module.inputs[0], step)))
        outputs.append(at(step, module, x))
        assert torch.equal(outputs[-1], expected)
    # Were the step not read, all would be equal.
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


@pytest.mark.parametrize("split", [1, 2, 5])
@pytest.mark.parametrize("name", ["conv", "same padding", "conv1d", "linear", "no bias"])
def test_a_split_layer_is_the_sum_of_two_layers(name, split):
    layer = build(name)
    module, x = quantized(layer, 4, split=split), input_of(layer)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    for step in range(STEPS):
        halves = []
        for part, (weight, values) in enumerate(
            zip(layer.weight.detach().split([split, 6 - split], 1), x.split([split, 6 - split], axis), strict=True)
        ):
            own = fake_quantize(weight, search_weight(weight, 4))
            halves.append(operation_of(layer)(fake_quantize(values, grid_of(module.inputs[part], step)), own))
        shape = (-1,) if axis == -1 else (-1, *[1] * (x.dim() - 2))
        bias = 0 if layer.bias is None else layer.bias.detach().view(shape)
        torch.testing.assert_close(at(step, module, x), sum(halves) + bias)


@pytest.mark.parametrize("split", [None, 2])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_and_simulated_agree_bit_for_bit(bits, split):
    layer = build("conv")
    x = input_of(layer)
    outputs = [at(1, quantized(layer, bits, storage, split), x) for storage in STORAGES]
    assert torch.equal(*outputs)


def test_in_8_bits_the_error_is_small_and_in_2_bits_it_is_not():
    layer = build("conv")
    x = input_of(layer)
    with torch.no_grad():
        exact = layer(x)
    errors = [(at(0, quantized(layer, bits), x) - exact).abs().max() / exact.abs().max() for bits in (8, 4, 2)]
    assert errors[0] < 0.05 < errors[1] < errors[2]


def parameter_bytes(module):
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in module.state_dict().values()}
    return sum(unique.values())


def test_a_packed_layer_without_its_original_is_small():
    layer = seeded(nn.Conv2d(64, 64, 3))
    module = quantized(layer, 4, "packed", keep_original=False)
    assert module.original is None
    assert parameter_bytes(module) < parameter_bytes(layer) / 7
    assert quantized(layer, 4, "packed").original is layer


def test_a_deep_copy_has_weights_of_its_own():
    module = quantized(build("conv"))
    x = input_of(module.original)
    expected = at(0, module, x)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        module.original.weight.zero_()
    assert torch.equal(at(0, copied, x), expected)
    assert not torch.equal(at(0, module, x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("storage", STORAGES)
def test_half_precision_is_computed_in_half_precision(dtype, storage):
    layer = build("linear").to(dtype)
    module = quantized(layer, storage=storage)
    x = input_of(layer).to(dtype)
    output = at(0, module, x)
    assert output.dtype == dtype
    weight = fake_quantize(layer.weight.float(), search_weight(layer.weight, 8)).to(dtype)
    expected = functional.linear(fake_quantize(x, grid_of(module.inputs[0], 0)), weight, layer.bias)
    assert torch.equal(output, expected)


# DEC's correction


def test_a_correction_scales_and_shifts_the_first_part_alone():
    layer = build("conv")
    module, x = quantized(layer, split=2), input_of(layer)
    plain = [at(step, module, x) for step in range(STEPS)]
    scale, shift = 1 + 0.3 * noise(STEPS, 4, seed=1), noise(STEPS, 4, seed=2)
    module.set_correction(scale, shift)
    only_first = torch.cat([x[:, :2], torch.zeros_like(x[:, 2:])], 1)
    for step in range(STEPS):
        first = at(step, quantized(layer, split=2), only_first) - layer.bias.detach().view(-1, 1, 1)
        a, b = scale[step].view(-1, 1, 1), shift[step].view(-1, 1, 1)
        # y = first + rest + bias becomes a * first + b + rest + bias: the bias is counted once (D9).
        torch.testing.assert_close(at(step, module, x), plain[step] + (a - 1) * first + b)


def test_a_correction_of_one_and_zero_changes_nothing():
    module = quantized(build("conv"), split=2)
    x = input_of(module.original)
    expected = at(0, module, x)
    module.set_correction(torch.ones(STEPS, 4), torch.zeros(STEPS, 4))
    torch.testing.assert_close(at(0, module, x), expected)
    module.set_correction(torch.full((STEPS, 4), 2.0), torch.zeros(STEPS, 4))
    assert not torch.equal(at(0, module, x), expected)
    module.set_correction(None, None)
    assert torch.equal(at(0, module, x), expected)


@pytest.mark.parametrize("name", ["conv", "no bias"])
def test_a_shift_alone_corrects_the_bias_step_by_step(name):
    layer = build(name)
    module, x, shift = quantized(layer), input_of(layer), noise(STEPS, 4)
    plain = [at(step, module, x) for step in range(STEPS)]
    module.set_correction(None, shift)
    for step in range(STEPS):
        own = shift[step] if name == "no bias" else shift[step].view(-1, 1, 1)
        torch.testing.assert_close(at(step, module, x), plain[step] + own)


def test_a_scale_needs_a_split_and_a_shift():
    for split, scale, shift in ((None, torch.ones(3, 4), torch.ones(3, 4)), (2, torch.ones(3, 4), None)):
        with pytest.raises(ValueError, match="needs a shift, and a layer that is split"):
            quantized(build("conv"), split=split).set_correction(scale, shift)


# Refusals


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(2, 2, 3),
        nn.Conv3d(2, 2, 3),
        nn.GroupNorm(1, 2),
        type("Derived", (nn.Linear,), {"forward": lambda self, x: x})(2, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_are_refused_by_name(layer):
    assert operation_of(layer) is None
    with pytest.raises(ValueError, match=f"A {type(layer).__name__} cannot be quantized"):
        QuantizedLayer(layer, [], [])


@pytest.mark.parametrize("split", [0, 6, 7, -1])
def test_a_split_outside_the_layer_is_refused(split):
    with pytest.raises(ValueError, match=f"6 input channels cannot be split at {split}"):
        part_widths(build("conv"), split)


def test_a_grouped_convolution_cannot_be_split():
    with pytest.raises(ValueError, match="cannot be split"):
        part_widths(build("grouped"), 1)


def test_the_parts_and_their_quantizers_must_match():
    layer = build("conv")
    with pytest.raises(ValueError, match="2 parts needs as many grids"):
        QuantizedLayer(layer, [search_weight(layer.weight, 8)], [steps_of()], split=2)
