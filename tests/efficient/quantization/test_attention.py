"""The opened attention against diffusers' own, and its operands on the grids of the step."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0
from tiny_models import noise, seeded
from torch import nn

from iec.efficient.quantization.activations import StepQuantizer
from iec.efficient.quantization.attention import OPERANDS, OperandProcessor, opens_operands
from iec.efficient.quantization.quantizer import Grid, fake_quantize
from iec.method.clock import Clock

# (the attention's settings, the shape of its input, the shape of its context)
KINDS = {
    "unet": (
        {"query_dim": 8, "heads": 2, "dim_head": 4, "norm_num_groups": 4, "residual_connection": True, "bias": True}
        | {"rescale_output_factor": 2.0, "upcast_softmax": True},
        (2, 8, 3, 5),
        None,
    ),
    "tokens": ({"query_dim": 8, "heads": 4, "dim_head": 3}, (2, 7, 8), None),
    "cross": ({"query_dim": 8, "cross_attention_dim": 6, "heads": 2, "dim_head": 4}, (2, 7, 8), (2, 3, 6)),
    "normed cross": (
        {"query_dim": 8, "cross_attention_dim": 6, "heads": 2, "dim_head": 4, "cross_attention_norm": "layer_norm"},
        (2, 7, 8),
        (2, 3, 6),
    ),
    "upcast": ({"query_dim": 8, "heads": 2, "dim_head": 4, "upcast_attention": True}, (2, 7, 8), None),
    "unscaled": ({"query_dim": 8, "heads": 2, "dim_head": 4, "scale_qk": False}, (2, 7, 8), None),
}


def build(kind):
    settings, shape, context = KINDS[kind]
    attention = seeded(Attention(**settings))
    return attention, noise(*shape), None if context is None else noise(*context, seed=1)


def identity():
    return {name: nn.Identity() for name in OPERANDS}


def run(attention, x, context, **kwargs):
    with torch.no_grad():
        return attention(x, encoder_hidden_states=context, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_done_to_the_operands_it_is_diffusers_attention(kind):
    attention, x, context = build(kind)
    expected = run(attention, x, context)
    attention.set_processor(OperandProcessor(identity()))
    torch.testing.assert_close(run(attention, x, context), expected)
    assert (expected - x).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["tokens", "cross"])
def test_a_mask_is_honoured(kind):
    attention, x, context = build(kind)
    keys = (x if context is None else context).shape[1]
    mask = torch.zeros(2, 1, keys)
    mask[0, :, 1] = mask[1, :, 0] = -1e4
    expected = run(attention, x, context, attention_mask=mask)
    attention.set_processor(OperandProcessor(identity()))
    torch.testing.assert_close(run(attention, x, context, attention_mask=mask), expected)
    assert (run(attention, x, context) - expected).abs().max() > 1e-2


def quantizers():
    """Coarse ones, different for each operand and for both steps."""
    deltas = {"query": 0.11, "key": 0.13, "value": 0.17, "probabilities": 0.019}
    zero = {"probabilities": 0.0}
    return {
        name: StepQuantizer(Grid(torch.tensor([delta, 2 * delta]), torch.full((2,), zero.get(name, 8.0)), 4), 2)
        for name, delta in deltas.items()
    }


@pytest.mark.parametrize("step", [0, 1])
def test_the_operands_are_quantized_with_the_grids_of_the_step(step):
    attention, x, context = build("cross")
    operands = quantizers()
    attention.set_processor(OperandProcessor(operands))
    with Clock(2) as clock:
        clock.step = step
        output = run(attention, x, context)

    def on_grid(name, tensor):
        quantizer = operands[name]
        return fake_quantize(tensor, Grid(quantizer.delta[step], quantizer.zero_point[step], 4))

    with torch.no_grad():
        heads = {
            name: on_grid(name, layer(values).unflatten(-1, (2, 4)).transpose(1, 2))
            for name, layer, values in (
                ("query", attention.to_q, x),
                ("key", attention.to_k, context),
                ("value", attention.to_v, context),
            )
        }
        scores = heads["query"] @ heads["key"].transpose(-1, -2) / 4**0.5
        probabilities = on_grid("probabilities", scores.softmax(-1))
        mixed = (probabilities @ heads["value"]).transpose(1, 2).flatten(2)
        expected = attention.to_out[0](mixed)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", OPERANDS)
def test_each_operand_counts(name):
    attention, x, context = build("cross")
    expected = run(attention, x, context)
    attention.set_processor(OperandProcessor({**identity(), name: quantizers()[name]}))
    with Clock(2):
        assert (run(attention, x, context) - expected).abs().max() > 1e-4


def test_the_original_processor_comes_back():
    attention, x, context = build("unet")
    expected, original = run(attention, x, context), attention.processor
    attention.set_processor(OperandProcessor(identity(), original))
    attention.set_processor(attention.processor.original)
    assert attention.processor is original
    assert torch.equal(run(attention, x, context), expected)


def test_all_four_operands_are_needed():
    with pytest.raises(ValueError, match="operands query, key, value, probabilities, but got query"):
        OperandProcessor({"query": nn.Identity()})


def test_which_attentions_are_opened():
    attention, _, _ = build("tokens")
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        attention.set_processor(processor)
        assert opens_operands(attention)
    attention.set_processor(FusedAttnProcessor2_0())
    assert not opens_operands(attention)
    assert not opens_operands(Attention(8, heads=2, dim_head=4, qk_norm="layer_norm"))
    assert not opens_operands(nn.Linear(2, 2))
