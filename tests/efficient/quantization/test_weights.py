"""Quantized weights: packing, bytes, and packed equal to simulated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import noise
from torch import nn

from iec.efficient.quantization.quantizer import Grid, fake_quantize
from iec.efficient.quantization.ranges import search_weight
from iec.efficient.quantization.weights import (
    CodedWeight,
    PackedWeight,
    SimulatedWeight,
    nearest_codes,
    pack_halves,
    unpack_halves,
)


def layer_of(weight):
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])
    layer.weight = nn.Parameter(weight)
    return layer


def packed_weight(weight, widths, grids):
    return PackedWeight(nearest_codes(weight, widths, grids), grids)


def stored_bytes(module):
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def test_two_codes_in_a_byte_by_hand():
    codes = torch.tensor([[1, 2, 15], [0, 7, 8], [9, 3, 4]], dtype=torch.uint8)
    packed = pack_halves(codes)
    assert packed.tolist() == [0x21, 0x0F, 0x87, 0x39, 0x04]
    assert torch.equal(unpack_halves(packed, codes.shape), codes)


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), max_size=40))
def test_unpacking_undoes_packing(values):
    codes = torch.tensor(values, dtype=torch.uint8)
    packed = pack_halves(codes)
    assert len(packed) == (len(values) + 1) // 2
    assert torch.equal(unpack_halves(packed, codes.shape), codes)


def test_the_values_by_hand():
    # delta 1, zero point 1: -1 .. 2; delta 10, zero point 0: 0 .. 30.
    weight = torch.tensor([[-5.0, 0.4, 1.6], [12.0, 16.0, 99.0]]).view(2, 3, 1, 1)
    grid = Grid(torch.tensor([1.0, 10.0]).view(2, 1, 1, 1), torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), 2)
    expected = [[-1, 0, 2], [10, 20, 30]]
    assert SimulatedWeight(layer_of(weight), [3], [grid])().flatten(1).tolist() == expected
    assert packed_weight(weight, [3], [grid])().flatten(1).tolist() == expected


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 1000), st.integers(1, 4))
def test_packed_and_simulated_give_the_same_bits(bits, other_bits, seed, width):
    weight = noise(3, 5, 2, 2, seed=seed)
    grids = [search_weight(weight[:, :width], bits), search_weight(weight[:, width:], other_bits)]
    packed = packed_weight(weight, [width, 5 - width], grids)
    simulated = SimulatedWeight(layer_of(weight), [width, 5 - width], grids)
    assert torch.equal(packed(), simulated())
    assert torch.equal(CodedWeight(nearest_codes(weight, [width, 5 - width], grids), grids)(), simulated())
    expected = [fake_quantize(weight[:, :width], grids[0]), fake_quantize(weight[:, width:], grids[1])]
    assert torch.equal(packed(), torch.cat(expected, 1))


@pytest.mark.parametrize(("bits", "per_weight"), [(8, 1), (5, 1), (4, 0.5), (2, 0.5)])
def test_the_bytes_fall(bits, per_weight):
    weight = noise(16, 32, 3, 3)
    packed = packed_weight(weight, [32], [search_weight(weight, bits)])
    # A float32 delta and a one-byte zero point per output channel.
    assert stored_bytes(packed) == weight.numel() * per_weight + 16 * 5
    assert stored_bytes(packed) < weight.nbytes / 3.7


def test_a_simulated_weight_follows_its_layer():
    weight = noise(2, 3, 1, 1)
    layer = layer_of(weight)
    simulated = SimulatedWeight(layer, [3], [search_weight(weight, 8)])
    before = simulated()
    with torch.no_grad():
        layer.weight.zero_()
    assert not torch.equal(simulated(), before)
    assert not simulated().any()


def test_the_gradient_reaches_the_float_weight():
    layer = layer_of(noise(2, 3, 1, 1))
    SimulatedWeight(layer, [3], [search_weight(layer.weight, 8)])().sum().backward()
    assert layer.weight.grad.count_nonzero() > 0
