"""The quick identity of networks: their weights, and nothing else."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from tiny_models import tiny_net, tiny_unet

from iec.storage.network_sketch import network_sketch


def sketch(network):
    return network_sketch({"unet": network})


def test_the_same_weights_have_the_same_sketch():
    assert sketch(tiny_unet()) == sketch(copy.deepcopy(tiny_unet()))
    assert sketch(tiny_unet()) != sketch(tiny_unet(1))
    assert len(sketch(tiny_unet())) == 16


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_one_tensor_that_is_another_changes_it(value):
    for name, parameter in tiny_net().named_parameters():
        other = tiny_net()
        dict(other.named_parameters())[name].data = parameter.data * 0.5 + value
        assert sketch(other) != sketch(tiny_net())


def test_the_layout_in_memory_and_compilation_do_not_matter():
    expected = sketch(tiny_unet())
    assert sketch(tiny_unet().to(memory_format=torch.channels_last)) == expected
    assert sketch(torch.compile(tiny_unet())) == expected
    assert sketch(tiny_unet().train()) == expected


@pytest.mark.parametrize("everything", [True, False])
def test_weights_that_are_offloaded_are_the_same(everything):
    """One after another, as `enable_sequential_cpu_offload` does, or some of them."""
    expected, network = sketch(tiny_unet()), tiny_unet()
    cpu_offload(network if everything else network.mid_block, torch.device("cpu"))
    assert any(parameter.is_meta for parameter in network.parameters())
    assert sketch(network) == expected
    other = tiny_unet(1)
    cpu_offload(other, torch.device("cpu"))
    assert sketch(other) == sketch(tiny_unet(1)) != expected


def test_the_dtype_and_the_name_matter():
    assert sketch(tiny_net().double()) != sketch(tiny_net())
    assert sketch(tiny_net().half()) != sketch(tiny_net())
    assert network_sketch({"transformer": tiny_net()}) != sketch(tiny_net())
    assert network_sketch({"unet": tiny_net(), "vae": tiny_net()}) != sketch(tiny_net())


def test_networks_are_told_apart_whatever_their_order():
    a, b = {"a": tiny_net(0), "b": tiny_net(1)}, {"b": tiny_net(1), "a": tiny_net(0)}
    assert network_sketch(a) == network_sketch(b)
    assert network_sketch(a) != network_sketch({"a": tiny_net(1), "b": tiny_net(0)})


def test_weights_that_are_nowhere_and_empty_ones_are_no_error():
    meta = tiny_net().to("meta")
    assert sketch(meta) == sketch(tiny_net(1).to("meta"))
    empty = tiny_net()
    empty.register_buffer("nothing", torch.empty(0, 3))
    empty.register_buffer("scalar", torch.tensor(1.0))
    assert sketch(empty) != sketch(tiny_net())
