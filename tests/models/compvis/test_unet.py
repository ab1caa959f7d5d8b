"""The key map of the UNets, proved by computing: the converted network gives the reference's output."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_models import noise

from iec.models.component import Component
from iec.models.compvis import convert_unet
from iec.models.paper import paper_model

from .reference_unet import UNet
from .settings import NAMES, UNETS, tiny_paper_model, tiny_unet


def filled(config, weights):
    network = config.make()
    network.load_state_dict(convert_unet(weights, config))
    return network.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_converted_network_computes_what_the_compvis_network_does(name):
    config, theirs = tiny_paper_model(name).unet, tiny_unet(name)
    ours = filled(config, theirs.state_dict())
    size = config.settings["sample_size"]
    x, t = noise(2, config.settings["in_channels"], size, size), torch.tensor([3, 870])
    context = noise(2, 3, 6) if name == "imagenet" else None
    conditioning = {} if context is None else {"encoder_hidden_states": context}
    expected = theirs(x, t, context)
    assert expected.std() > 0.1
    assert torch.allclose(ours(x, t, **conditioning).sample, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_at_full_size_the_published_layout_and_the_paper_configuration_are_one_network(name):
    with torch.device("meta"):
        theirs = UNet(**UNETS[name]).state_dict()
    config = paper_model(name).unet
    converted = convert_unet(theirs, config)
    assert {key: tensor.shape for key, tensor in converted.items()} == config.shapes()


@st.composite
def configurations(draw):
    """A random architecture in CompVis's settings, and the same in those of diffusers."""
    levels = [1, *draw(st.lists(st.sampled_from((1, 2, 3)), max_size=3))]  # diffusers takes its width from the first
    attention = [draw(st.booleans()) for _ in levels]
    layers, transformer = draw(st.integers(1, 3)), draw(st.booleans())
    heads = draw(st.sampled_from((1, 2, 4)))
    scale_shift, updown = (False, False) if transformer else (draw(st.booleans()), draw(st.booleans()))
    theirs = {
        "in_channels": 3,
        "out_channels": 2,
        "model_channels": 4,
        "channel_mult": levels,
        "num_res_blocks": layers,
        "attention": [2**level for level, has in enumerate(attention) if has],
        "num_heads": heads,
        "scale_shift": scale_shift,
        "resblock_updown": updown,
        "context_dim": 3 if transformer else None,
        "groups": 2,
    }
    plain = "Resnet{}sampleBlock2D" if updown else "{}Block2D"
    attending = "CrossAttn{}Block2D" if transformer else "Attn{}Block2D"
    kinds = [attending if has else plain for has in attention]
    settings = {
        "in_channels": 3,
        "out_channels": 2,
        "block_out_channels": [4 * level for level in levels],
        "layers_per_block": layers,
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "norm_num_groups": 2,
    }
    if transformer:
        return theirs, Component(
            "UNet2DConditionModel", {**settings, "cross_attention_dim": 3, "attention_head_dim": heads}
        )
    resampling = {"downsample_type": "resnet", "upsample_type": "resnet"} if updown else {}
    shift = {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2} if scale_shift else {}
    return theirs, Component("FixedHeadsUNet2DModel", {**settings, **resampling, **shift, "num_attention_heads": heads})


@hypothesis_settings(max_examples=15)
@given(configurations())
def test_every_number_of_the_source_is_used_exactly_once(configuration):
    settings, config = configuration
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in UNet(**settings).state_dict().items()}
    numbered, count = {}, 0
    for key, shape in shapes.items():
        numbered[key] = torch.arange(count, count + shape.numel()).double().reshape(shape)
        count += shape.numel()
    converted = convert_unet(numbered, config)
    assert {key: tensor.shape for key, tensor in converted.items()} == config.shapes()
    found = torch.cat([tensor.flatten() for tensor in converted.values()])
    assert torch.equal(found.sort().values, torch.arange(count).double())


@hypothesis_settings(max_examples=10)
@given(configurations(), st.integers(0, 99))
@torch.no_grad()
def test_any_such_network_computes_what_the_compvis_network_does(configuration, seed):
    settings, config = configuration
    torch.manual_seed(seed)
    theirs = UNet(**settings).eval()
    x, t = noise(2, 3, 16, 16, seed=seed), torch.tensor([0, 999])
    context = noise(2, 2, 3, seed=seed)
    conditioning = {"encoder_hidden_states": context} if settings["context_dim"] else {}
    expected = theirs(x, t, context)
    found = filled(config, theirs.state_dict())(x, t, **conditioning).sample
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_missing_unexpected_and_misshapen_tensors_are_named_in_one_sentence():
    config, weights = tiny_paper_model("bedrooms").unet, tiny_unet("bedrooms").state_dict()
    del weights["input_blocks.1.0.in_layers.0.weight"], weights["out.2.bias"]
    weights["input_blocks.77.0.weight"] = torch.zeros(1)
    weights["time_embed.0.bias"] = torch.zeros(3)
    weights["middle_block.1.qkv.weight"] = weights["middle_block.1.qkv.weight"].squeeze(-1)[..., None, None]
    with pytest.raises(ValueError, match="These are not the weights of this UNet") as raised:
        convert_unet(weights, config)
    sentence = str(raised.value)
    assert "input_blocks.1.0.in_layers.0.weight is missing (and 1 more)" in sentence
    assert "input_blocks.77.0.weight is unexpected;" in sentence
    assert "time_embed.0.bias, [3] in the place of [32], does not fit." in sentence  # a 1x1 kernel of more axes fits
    assert "\n" not in sentence


def test_integers_and_transposed_projections_do_not_fit():
    config, weights = tiny_paper_model("bedrooms").unet, tiny_unet("bedrooms").state_dict()
    changed = {**weights, "out.2.bias": torch.zeros(3, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"out\.2\.bias, of torch\.int8, does not fit"):
        convert_unet(changed, config)
    qkv = weights["middle_block.1.qkv.weight"]
    with pytest.raises(ValueError, match=r"middle_block\.1\.qkv\.weight, \[32, 96, 1\] in the place of \[96, 32\]"):
        convert_unet({**weights, "middle_block.1.qkv.weight": qkv.transpose(0, 1)}, config)


def test_a_configuration_without_a_compvis_counterpart_is_refused():
    config = tiny_paper_model("bedrooms").unet
    labelled = replace(config, settings={**config.settings, "num_class_embeds": 4})
    with pytest.raises(ValueError, match=r"has no CompVis counterpart: class_embedding\.weight"):
        convert_unet(tiny_unet("bedrooms").state_dict(), labelled)
