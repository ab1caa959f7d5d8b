"""A network quantized, run, and put back bit for bit."""

import copy
import functools

import pytest
import torch
from diffusers import UNet2DModel
from tiny_models import noise, tiny_unet
from torch import nn

import iec
from iec.efficient import DeepCacheConfig, apply, remove
from iec.efficient.quantization.attention import OPERANDS, OperandProcessor
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.layers import QuantizedLayer
from iec.efficient.quantization.network import quantize_network, restore_network, search_weights, stored_bytes
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.statistics import ActivationStatistics, recording
from iec.method.clock import Clock
from iec.storage.fingerprint import fingerprint

from .networks import NETWORKS, evaluate, unet

STEPS = 3
W8, W4 = QuantizationConfig(), QuantizationConfig(weights=4)


def at(step, network, seed=0, num_steps=STEPS):
    with Clock(num_steps) as clock:
        clock.step = step
        return evaluate(network, seed)


def calibrated(network, config=W8, num_steps=STEPS):
    """The activation grids of a few evaluations at every step."""
    statistics = ActivationStatistics(coverage(network, config))
    with recording(network, statistics.covered, statistics.add):
        for step in range(num_steps):
            for seed in range(3):
                at(step, network, seed, num_steps)
    return statistics.grids()


@functools.cache
def grids_of(name, activations=8):
    return calibrated(NETWORKS[name](), QuantizationConfig(activations=activations))


def quantized(network, config=W8, num_steps=STEPS, grids=None):
    covered = coverage(network, config)
    grids = calibrated(network, config, num_steps) if grids is None else grids
    return quantize_network(network, covered, search_weights(network, covered), grids, num_steps)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantized_network_is_near_its_float_one_and_fewer_bits_are_farther(name):
    network = NETWORKS[name]()
    exact = at(1, network, seed=7)
    errors = []
    for config in (W8, W4, QuantizationConfig(weights=2, activations=4)):
        done = quantized(network, config, grids=grids_of(name, config.activations))
        assert all(n.endswith("embedding_table") for n in done.in_float)
        assert len(done.layers) == sum(isinstance(module, QuantizedLayer) for module in network.modules())
        assert len(done.attentions) > 0
        errors.append(relative_error(at(1, network, seed=7), exact))
        restore_network(network)
    assert errors[0] < 0.1
    assert 1.2 * errors[0] < errors[1] < errors[2] / 2


@pytest.mark.parametrize("storage", ["simulate", "packed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_restoring_gives_the_same_modules_and_bits_back(name, storage):
    network = NETWORKS[name]()
    expected, weights = evaluate(network), fingerprint(network)
    modules = dict(network.named_modules())
    processors = {n: module.processor for n, module in modules.items() if hasattr(module, "processor")}
    assert processors
    config = QuantizationConfig(weights=4, storage=storage, keep_original=True)
    quantized(network, config, grids=grids_of(name))
    assert not torch.equal(at(0, network), expected)
    restore_network(network)
    assert dict(network.named_modules()).keys() == modules.keys()
    assert all(module is modules[n] for n, module in network.named_modules())
    assert all(modules[n].processor is processor for n, processor in processors.items())
    assert fingerprint(network) == weights
    assert torch.equal(evaluate(network), expected)
    restore_network(network)  # a float network is left alone
    assert torch.equal(evaluate(network), expected)


def test_recording_leaves_the_network_as_it_was():
    network = unet()
    expected = evaluate(network)
    processors = {module: module.processor for module in network.modules() if hasattr(module, "processor")}
    assert processors
    calibrated(network)
    assert all(module.processor is processor for module, processor in processors.items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert torch.equal(evaluate(network), expected)


def test_packed_and_simulated_networks_agree():
    outputs, bytes_stored = [], []
    float_bytes = stored_bytes(unet())
    for storage in ("simulate", "packed"):
        network = unet()
        quantized(network, QuantizationConfig(weights=4, storage=storage, keep_original=False), grids=grids_of("unet"))
        outputs.append(at(2, network))
        bytes_stored.append(stored_bytes(network))
    assert torch.equal(*outputs)
    assert bytes_stored[1] < 0.5 * float_bytes < bytes_stored[0]


def test_a_packed_network_without_its_originals_cannot_be_restored_and_stays_as_it_is():
    network = unet()
    quantized(network, QuantizationConfig(storage="packed", keep_original=False), grids=grids_of("unet"))
    output = at(0, network)
    with pytest.raises(ValueError, match="of this network were not kept"):
        restore_network(network)
    assert torch.equal(at(0, network), output)


def test_quantizing_twice_is_refused():
    network, grids = unet(), grids_of("unet")
    quantized(network, grids=grids)
    output = at(0, network)
    with pytest.raises(ValueError, match="quantized already"):
        quantized(network, grids=grids)
    assert torch.equal(at(0, network), output)


def test_what_was_never_run_stays_in_float_and_is_named():
    network = unet()
    network.mid_block.spare = nn.Linear(4, 4)
    done = quantized(network)
    assert done.in_float == ("mid_block.spare",)
    assert type(network.mid_block.spare) is nn.Linear
    assert "mid_block.spare" not in done.layers


def test_missing_grids_change_nothing():
    network, grids = unet(), grids_of("unet")
    expected = evaluate(network)
    for missing in ("up_blocks.0.resnets.0.conv1:1", f"{coverage(network, W8).attentions[0]}:key"):
        with pytest.raises(ValueError, match=f"lacks '{missing}'"):
            quantized(network, grids={key: grid for key, grid in grids.items() if key != missing})
    with pytest.raises(ValueError, match="4 steps in groups of 1 need 4 grids"):
        quantized(network, num_steps=4, grids=grids)
    assert torch.equal(evaluate(network), expected)


def test_a_layer_with_several_names_is_replaced_under_all_of_them():
    network = tiny_unet()
    downsampler = network.down_blocks[0].downsamplers[0]
    downsampler.alias = downsampler.conv
    expected = evaluate(network)
    quantized(network)
    assert isinstance(downsampler.conv, QuantizedLayer)
    assert downsampler.alias is downsampler.conv
    restore_network(network)
    assert downsampler.alias is downsampler.conv
    assert torch.equal(evaluate(network), expected)


# Every quantizer reads its own step, in every pass


def planted(num_steps):
    """Grids so different from step to step that a wrong index shows."""
    grids = {}
    factor = 1 + torch.arange(num_steps) / 2
    for key, grid in grids_of("unet").items():
        grids[key] = Grid(grid.delta[0] * factor, grid.zero_point[0].expand(num_steps).clone(), grid.bits)
    return grids


def static(network, grids, step):
    """`network`, quantized with the grids of one step alone, for runs of one step."""
    own = copy.deepcopy(network)
    grids = {key: Grid(grid.delta[[step]], grid.zero_point[[step]], grid.bits) for key, grid in grids.items()}
    quantized(own, num_steps=1, grids=grids)

    def denoise(x, t):
        with Clock(1), torch.no_grad():
            return own(x, t).sample

    return denoise


@pytest.mark.parametrize("relaxations", [(), (0.5,), (1.0, 0.5)])
def test_the_main_call_and_the_corrections_of_a_step_use_its_grids(relaxations):
    network, num_steps = unet(), 4
    grids = planted(num_steps)
    denoisers = [static(network, grids, step) for step in range(num_steps)]
    config = iec.IECConfig(relaxations or 0.5, len(relaxations), tolerance=0.0)
    calls = []

    def stepwise(x, t):
        step = iec.method.current_clock().step
        calls.append(step)
        return denoisers[step](x, t)

    x = noise(2, 3, 8, 8)
    expected = iec.sample(stepwise, x, num_steps, config=config)
    assert calls == sorted([*range(num_steps)] * (1 + len(relaxations)))
    quantized(network, num_steps=num_steps, grids=grids)
    with torch.no_grad():
        assert torch.equal(iec.sample(network, x, num_steps, config=config), expected)
        drifted = {key: Grid(g.delta.roll(1), g.zero_point.roll(1), g.bits) for key, g in grids.items()}
        restore_network(network)
        quantized(network, num_steps=num_steps, grids=drifted)
        assert relative_error(iec.sample(network, x, num_steps, config=config), expected) > 1e-2


def test_deepcache_walks_a_quantized_network():
    network = unet()
    quantized(network, grids=grids_of("unet"))
    apply(network, DeepCacheConfig(2))
    with Clock(STEPS) as clock:
        first = evaluate(network)
        clock.advance()
        cached = evaluate(network, seed=1)
        assert clock.full is False
    remove(network)
    assert type(network) is UNet2DModel
    assert torch.equal(at(0, network), first)
    assert not torch.equal(at(1, network, seed=1), cached)
    restore_network(network)
    assert not any(isinstance(module, (QuantizedLayer, OperandProcessor)) for module in network.modules())


def test_every_operand_is_recorded_and_every_part_of_a_split():
    network, grids = unet(), grids_of("unet")
    covered = coverage(network, W8)
    assert grids.keys() == covered.bits_of_activations().keys()
    assert any(key.endswith(":1") for key in grids)
    assert {key.rsplit(":", 1)[1] for key in grids} == {"0", "1", *OPERANDS}
