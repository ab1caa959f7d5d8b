"""What is quantized of each kind of network: every layer, by name, with its bits and its split."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from tiny_models import tiny_net, tiny_unet
from torch import nn

from iec.efficient.quantization.attention import opens_operands
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import concatenation_splits, coverage

from ..caching.architectures import ARCHITECTURES, build, decoder_resnets, plain
from .networks import NETWORKS, conditional, evaluate, unet

W4 = QuantizationConfig(weights=4, activations=6)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_and_linear_layer_is_covered(name):
    network = NETWORKS[name]()
    covered = coverage(network, W4)
    layers = {id(network.get_submodule(layer.name)) for layer in covered.layers}
    assert layers == {id(module) for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert len(layers) == len(covered.layers) > 10
    attentions = [n for n, module in network.named_modules() if isinstance(module, Attention)]
    assert sorted(covered.attentions) == sorted(attentions)
    assert attentions


FIRST_LAST = {
    "unet": {"conv_in", "conv_out"},
    "conditional": {"conv_in", "conv_out"},
    "transformer": {"pos_embed.proj", "proj_out_2"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_and_the_last_layer_have_bits_of_their_own(name):
    covered = coverage(NETWORKS[name](), W4)
    bits = {layer.name: (layer.weights, layer.activations) for layer in covered.layers}
    assert {layer for layer, both in bits.items() if both == (8, 8)} == FIRST_LAST[name]
    assert {both for layer, both in bits.items() if layer not in FIRST_LAST[name]} == {(4, 6)}


def test_the_bits_of_every_activation():
    covered = coverage(unet(), QuantizationConfig(activations=6, first_last=7, softmax=5))
    bits = covered.bits_of_activations()
    attention = covered.attentions[0]
    assert bits["conv_in:0"] == bits["conv_out:0"] == 7
    assert bits["mid_block.resnets.0.conv1:0"] == 6
    assert [bits[f"{attention}:{operand}"] for operand in ("query", "key", "value", "probabilities")] == [6, 6, 6, 5]
    assert len(bits) == sum(len(layer.widths) for layer in covered.layers) + 4 * len(covered.attentions)


def main_widths(network, resnets, run):
    """The channels of the main branch of each decoder ResNet, read off an evaluation: a concatenation's first part."""
    widths, made = [], []
    cat = torch.cat

    def watched(tensors, *args, **kwargs):
        output = cat(tensors, *args, **kwargs)
        made.append((output, tensors[0].shape[1]))
        return output

    def hook(module, args):
        widths.extend(width for output, width in made if output is args[0])

    handles = [resnet.register_forward_pre_hook(hook) for resnet in resnets]
    torch.cat = watched
    try:
        run(network)
    finally:
        torch.cat = cat
        for handle in handles:
            handle.remove()
    return widths


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_layers_after_a_concatenation_are_split_at_the_main_branch(name):
    network = build(name)
    check_splits(network, plain)


def test_a_conditional_unet_is_split_too():
    check_splits(conditional(), evaluate)


def check_splits(network, run):
    resnets = decoder_resnets(network)
    widths = main_widths(network, resnets, run)
    assert len(widths) == len(resnets)
    expected = {}
    for resnet, width in zip(resnets, widths, strict=True):
        expected[resnet.conv1] = width
        if resnet.conv_shortcut is not None:
            expected[resnet.conv_shortcut] = width
    assert concatenation_splits(network) == expected
    by_layer = {network.get_submodule(layer.name): layer for layer in coverage(network, W4).layers}
    for module, layer in by_layer.items():
        assert layer.split == expected.get(module)
        assert sum(layer.widths) == module.weight.shape[1]


def test_a_transformer_has_no_split():
    assert not concatenation_splits(NETWORKS["transformer"]())


def test_unknown_blocks_are_not_split():
    network = unet()
    network.up_blocks[0].__class__ = type("StrangeUpBlock2D", (type(network.up_blocks[0]),), {})
    assert not concatenation_splits(network)


def test_what_stays_in_float_is_named():
    network = tiny_unet(num_class_embeds=3, class_embed_type=None)
    network.mid_block.resnets[0].conv1 = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
    covered = coverage(network, W4)
    assert set(covered.in_float) == {"class_embedding", "mid_block.resnets.0.conv1"}
    assert "mid_block.resnets.0.conv1" not in {layer.name for layer in covered.layers}


def test_attentions_stay_in_float_where_they_cannot_or_shall_not_be_opened():
    network = unet()
    attentions = set(coverage(network, W4).attentions)
    assert set(coverage(network, QuantizationConfig(attention=False)).in_float) == attentions
    assert coverage(network, QuantizationConfig(attention=False)).attentions == ()
    first = sorted(attentions)[0]
    network.get_submodule(first).set_processor(lambda attn, x, **kwargs: x)
    assert not opens_operands(network.get_submodule(first))
    assert coverage(network, W4).in_float == (first,)


@pytest.mark.parametrize("network", [tiny_net(), nn.Linear(2, 2)], ids=lambda network: type(network).__name__)
def test_another_network_is_refused_by_name(network):
    with pytest.raises(TypeError, match=f"but the denoiser is a {type(network).__name__}"):
        coverage(network, W4)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"weights": 1}, ValueError),
        ({"weights": 9}, ValueError),
        ({"activations": 16}, ValueError),
        ({"first_last": 0}, ValueError),
        ({"softmax": -8}, ValueError),
        ({"weights": 8.0}, TypeError),
        ({"steps_per_group": 0}, ValueError),
        ({"steps_per_group": 1.5}, TypeError),
        ({"storage": "int8"}, ValueError),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_they_are_made(setting, error):
    with pytest.raises(error, match=rf"{next(iter(setting))}.*\.$"):
        QuantizationConfig(**setting)
