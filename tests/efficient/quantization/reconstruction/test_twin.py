"""The twin pass: at every unit, what the quantized network gives and what the float one does."""

import copy

import pytest
import torch
from tiny_models import tiny_unet
from torch import nn

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.network import quantize_network, search_weights
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.reconstruction.samples import Samples
from iec.efficient.quantization.reconstruction.twin import suspended_pass, twin_of
from iec.efficient.quantization.reconstruction.units import frozen_copy, units_of
from iec.efficient.quantization.statistics import ActivationStatistics, recording
from iec.method.clock import Clock, current_clock

from ..networks import NETWORKS, evaluate, inputs_of

STEPS = 3
W4 = QuantizationConfig(weights=4)


def planted(network, config=W4):
    """Grids that differ so much from step to step that a wrong one shows."""
    statistics = ActivationStatistics(coverage(network, config))
    with recording(network, statistics.covered, statistics.add), Clock(1):
        for seed in range(3):
            evaluate(network, seed)
    factor = 1 + torch.arange(STEPS) / 2
    return {
        key: Grid(grid.delta * factor, grid.zero_point.expand(STEPS).clone(), grid.bits)
        for key, grid in statistics.grids().items()
    }


def quantized(network):
    covered = coverage(network, W4)
    student = frozen_copy(network)
    done = quantize_network(student, covered, search_weights(network, covered), planted(network), STEPS)
    return student, done.layers


def samples_of(network, count=6):
    return Samples(torch.arange(count) % STEPS, inputs_of(network, count))


def at_own_steps(network, samples):
    """`network` on all samples, each at its own step: all at every step, of which the others are dropped."""
    outputs = []
    for step in range(STEPS):
        with Clock(STEPS) as clock, torch.no_grad():
            clock.step = step
            outputs.append(network(**samples.inputs).sample)
    return torch.stack(outputs)[samples.steps, torch.arange(len(samples))]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_that_mixes_steps_gives_each_sample_its_own_grids(name):
    network = NETWORKS[name]()
    student, _ = quantized(network)
    samples = samples_of(network)
    expected = at_own_steps(student, samples)
    with Clock(STEPS) as clock, torch.no_grad():
        clock.sample_steps = samples.steps
        assert torch.equal(student(**samples.inputs).sample, expected)
        clock.sample_steps = samples.steps.roll(1)
        assert not torch.allclose(student(**samples.inputs).sample, expected, rtol=0.05)


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_is_asked_for_once_with_both_inputs(name, granularity):
    network = NETWORKS[name]()
    student, layers = quantized(network)
    samples = samples_of(network)
    units = units_of(network, layers, granularity)
    expected = {
        "student": inputs_of_units(student, units, samples),
        "teacher": inputs_of_units(network, units, samples),
    }
    twin = twin_of(student, units, None)
    seen = []
    with Clock(STEPS) as clock, torch.no_grad():
        clock.sample_steps = samples.steps
        one = suspended_pass(twin, samples, slice(0, len(samples)), STEPS, None)
        question = one.advance()
        while question is not None:
            seen.append(question.unit)
            outputs = []
            for half, module in (("student", student), ("teacher", network)):
                call = getattr(question, half)
                torch.testing.assert_close(call.args[0], expected[half][question.unit], rtol=1e-4, atol=1e-5)
                outputs.append(module.get_submodule(question.unit)(*call.args, **call.kwargs))
            question = one.advance(torch.cat(outputs))
    # DiT runs one of its embeddings twice.
    assert sorted(seen) == sorted(units) or name == "transformer"
    assert list(dict.fromkeys(seen)) == list(expected["student"])  # in the order of the network


def inputs_of_units(network, units, samples):
    """The first input of every unit, in a plain evaluation of all samples, each at its own step."""
    inputs, handles = {}, []
    for name in units:

        def hook(module, args, name=name):
            inputs[name] = args[0].clone()

        handles.append(network.get_submodule(name).register_forward_pre_hook(hook))
    with Clock(STEPS) as clock, torch.no_grad():
        clock.sample_steps = samples.steps
        network(**samples.inputs)
    for handle in handles:
        handle.remove()
    return inputs


def test_the_units_of_a_block():
    network = tiny_unet(add_attention=True)
    layers = [target.name for target in coverage(network, W4).layers]
    units = units_of(network, layers, "block")
    assert units["mid_block.resnets.0"] == tuple(n for n in layers if n.startswith("mid_block.resnets.0."))
    assert len(units["mid_block.attentions.0"]) == 4
    assert units["conv_in"] == ("conv_in",)
    assert units["down_blocks.0.downsamplers.0.conv"] == ("down_blocks.0.downsamplers.0.conv",)
    assert sorted(layer for own in units.values() for layer in own) == sorted(layers)
    transformer = NETWORKS["transformer"]()
    names = [target.name for target in coverage(transformer, W4).layers]
    units = units_of(transformer, names, "block")
    assert len(units["transformer_blocks.1.attn1"]) == 4
    assert units["transformer_blocks.1.norm1.linear"] == ("transformer_blocks.1.norm1.linear",)
    conditional = NETWORKS["conditional"]()
    names = [target.name for target in coverage(conditional, W4).layers]
    assert "down_blocks.0.attentions.0.transformer_blocks.0" in units_of(conditional, names, "block")


def test_a_frozen_copy_shares_float32_weights_and_leaves_others_alone():
    network = tiny_unet()
    copied = frozen_copy(network)
    assert copied.conv_in.weight.data_ptr() == network.conv_in.weight.data_ptr()
    half = copy.deepcopy(network).half().train()
    copied = frozen_copy(half)
    assert copied.conv_in.weight.dtype == torch.float32
    assert half.conv_in.weight.dtype == torch.float16
    assert half.training
    assert not copied.training


def test_what_depends_on_one_step_alone_is_refused_where_steps_are_mixed():
    network = tiny_unet()
    student, _ = quantized(network)
    layer = student.get_submodule("up_blocks.0.resnets.0.conv1")
    layer.set_correction(torch.ones(STEPS, layer.weight.part(0).shape[0]), torch.zeros(STEPS, 1))
    with Clock(STEPS), torch.no_grad():
        current_clock().sample_steps = torch.tensor([0, 1])
        with pytest.raises(RuntimeError, match="mixes steps"):
            evaluate(student)
    assert isinstance(network.conv_in, nn.Conv2d)
