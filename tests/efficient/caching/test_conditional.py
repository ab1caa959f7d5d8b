"""DeepCache on conditional UNets of every kind of block, at every branch, against evaluations by hand."""

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from tiny_models import noise, seeded
from torch.utils.flop_counter import FlopCounterMode

from iec.efficient import DeepCacheConfig, apply, remove
from iec.method.clock import Clock

from .conditional import ARCHITECTURES, BASE, BRANCHES, ODD, build, by_hand, count_entries, inputs_of, plain

CASES = [(*case, (8, 8)) for case in BRANCHES] + [(*case, (9, 11)) for case in ODD]


@torch.no_grad()
def evaluate(unet, clock, step, **inputs):
    clock.step = step
    clock.begin_pass(0)
    return unet(**inputs).sample


def full_and_cached(unet, config, first, second):
    """The outputs of a full step with the first inputs, and of a cached one with the second."""
    apply(unet, config)
    with Clock(10) as clock:
        outputs = evaluate(unet, clock, 0, **first), evaluate(unet, clock, 1, **second)
        assert clock.full is False
    remove(unet)
    return outputs


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "branch", "size"), CASES)
def test_every_evaluation_equals_the_one_by_hand_bit_for_bit(name, branch, size):
    unet = build(name)
    first, second = inputs_of(unet, 0, size=size), inputs_of(unet, 1, size=size)
    ordinary = [plain(unet, **inputs) for inputs in (first, second)]
    full, feature = by_hand(unet, branch, **first)
    assert torch.equal(full, ordinary[0])
    cached, _ = by_hand(unet, branch, feature, **second)
    got = full_and_cached(unet, DeepCacheConfig(2, branch), first, second)
    assert torch.equal(got[0], ordinary[0])
    assert torch.equal(got[1], cached)
    assert (cached - ordinary[1]).abs().max() > 1e-4
    apply(unet, DeepCacheConfig(1, branch))
    with Clock(2) as clock:
        assert all(torch.equal(evaluate(unet, clock, i, **x), ordinary[i]) for i, x in enumerate((first, second)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cached_evaluation_costs_what_its_layers_cost(name):
    unet = build(name)
    inputs, costs = inputs_of(unet), []
    full = flops(lambda: plain(unet, **inputs))
    for branch in range(count_entries(unet)):
        _, feature = by_hand(unet, branch, **inputs)
        apply(unet, DeepCacheConfig(2, branch))
        with Clock(10) as clock:
            assert flops(lambda c=clock: evaluate(unet, c, 0, **inputs)) == full
            costs.append(flops(lambda c=clock: evaluate(unet, c, 1, **inputs)))
        remove(unet)
        assert costs[-1] == flops(lambda b=branch, f=feature: by_hand(unet, b, f, **inputs))
    assert costs == sorted(set(costs))
    assert costs[-1] == full if unet.mid_block is None else costs[-1] < full


@pytest.mark.parametrize("name", ["three levels", "uneven", "self-attention"])
def test_the_default_branch_is_1(name):
    unet = build(name)
    first, second = inputs_of(unet, 0), inputs_of(unet, 1)
    default = full_and_cached(unet, DeepCacheConfig(2), first, second)
    assert torch.equal(default[1], full_and_cached(unet, DeepCacheConfig(2, 1), first, second)[1])


# What a conditional evaluation may be given


def test_both_halves_of_guidance_have_their_own_feature():
    unet = build("three levels")

    def batch(seed, first, last):
        inputs = inputs_of(unet, seed, batch=2)
        text = noise(4, 5, 6, seed=30)[first:last]
        repeats = (last - first) // 2
        return {
            "sample": inputs["sample"].repeat(repeats, 1, 1, 1),
            "timestep": inputs["timestep"],
            "encoder_hidden_states": text,
        }

    def cached(first, last):
        return full_and_cached(unet, DeepCacheConfig(2, 2), batch(0, first, last), batch(1, first, last))[1]

    halves = cached(0, 2), cached(2, 4)
    torch.testing.assert_close(cached(0, 4), torch.cat(halves), rtol=1e-5, atol=1e-5)
    assert (halves[0] - halves[1]).abs().max() > 1e-3


def test_attention_masks_reach_the_attention():
    unet = build("simple attention")
    inputs = {**inputs_of(unet), "attention_mask": torch.tensor([[1.0, 0, 1, 1, 0]] * 2)}
    for branch in range(count_entries(unet)):
        output, feature = by_hand(unet, branch, **inputs)
        cached, _ = by_hand(unet, branch, feature, **inputs)
        got = full_and_cached(unet, DeepCacheConfig(2, branch), inputs, inputs)
        assert torch.equal(got[0], output)
        assert torch.equal(got[1], cached)
    without = {**inputs, "attention_mask": None}
    assert not torch.equal(full_and_cached(unet, DeepCacheConfig(2, branch), without, without)[1], got[1])


class Louder:
    """An attention processor with an argument of its own."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, gain=1.0, **others):
        return gain * hidden_states


def test_cross_attention_kwargs_reach_the_processors():
    unet = build("three levels")
    unet.set_attn_processor(Louder())
    inputs = inputs_of(unet)
    loud = {**inputs, "cross_attention_kwargs": {"gain": 3.0}}
    expected, quiet = plain(unet, **loud), full_and_cached(unet, DeepCacheConfig(2, 2), inputs, inputs)
    full, cached = full_and_cached(unet, DeepCacheConfig(2, 2), loud, loud)
    assert torch.equal(full, expected)
    torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-5)  # the feature is the step's own
    assert not torch.equal(cached, quiet[1])


@pytest.mark.parametrize("branch", range(7))
def test_freeu_scales_the_stored_feature_once(branch):
    unet = build("three levels")
    unet.enable_freeu(s1=0.6, s2=0.4, b1=1.1, b2=1.2)
    inputs = inputs_of(unet)
    expected = plain(unet, **inputs)
    assert not torch.equal(expected, plain(build("three levels"), **inputs))
    apply(unet, DeepCacheConfig(4, branch))
    with Clock(4) as clock:
        assert torch.equal(evaluate(unet, clock, 0, **inputs), expected)
        for step in (1, 2):
            torch.testing.assert_close(evaluate(unet, clock, step, **inputs), expected, rtol=1e-5, atol=1e-5)


def controlnet_residuals(unet, seed, size=(8, 8)):
    """What a ControlNet of this UNet gives at these inputs."""
    controlnet = seeded(ControlNetModel.from_unet(unet), 3)
    inputs = inputs_of(unet, seed, size=size)
    height, width = (8 * side for side in size)
    image = noise(2, 3, height, width, seed=40 + seed)
    with torch.no_grad():
        output = controlnet(
            inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], controlnet_cond=image
        )
    return {
        "down_block_additional_residuals": list(output.down_block_res_samples),
        "mid_block_additional_residual": output.mid_block_res_sample,
    }


@pytest.mark.parametrize("branch", range(4))
def test_a_controlnets_residuals_are_added_to_what_is_computed(branch):
    unet = build("cross attention")
    first, second = ({**inputs_of(unet, seed), **controlnet_residuals(unet, seed)} for seed in range(2))
    full, feature = by_hand(unet, branch, **first)
    assert torch.equal(full, plain(unet, **first))
    cached, _ = by_hand(unet, branch, feature, **second)
    got = full_and_cached(unet, DeepCacheConfig(2, branch), first, second)
    assert torch.equal(got[0], full)
    assert torch.equal(got[1], cached)
    without = {**second, "down_block_additional_residuals": None, "mid_block_additional_residual": None}
    assert not torch.equal(full_and_cached(unet, DeepCacheConfig(2, branch), first, without)[1], cached)


# What is refused


@pytest.mark.parametrize("given", ["down_intrablock_additional_residuals", "down_block_additional_residuals"])
def test_an_adapters_residuals_are_refused_before_any_layer_runs(given):
    unet = build("cross attention")
    apply(unet, DeepCacheConfig(2))
    unet.conv_in.register_forward_pre_hook(lambda module, args: pytest.fail("evaluated"))
    residuals = {given: [torch.zeros(2, 8, 8, 8)]}
    with Clock(4), pytest.raises(ValueError, match=r"T2I-Adapter.*sample without the adapter\.$"):
        unet(**inputs_of(unet), **residuals)
    absent = [None] * (7 if "intra" in given else 5)
    with Clock(4), pytest.raises(ValueError, match="T2I-Adapter"):
        unet(*list(inputs_of(unet).values())[:3], *absent, residuals[given])


@pytest.mark.parametrize("down", ["SkipDownBlock2D", "AttnSkipDownBlock2D", "KDownBlock2D", "KCrossAttnDownBlock2D"])
def test_a_block_that_cannot_be_cut_is_refused_by_name(down):
    unet = build("cross attention")
    unet.down_blocks[1].__class__ = type(down, (torch.nn.Module,), {})
    with pytest.raises(ValueError, match=f"cannot cut a {down}"):
        apply(unet, DeepCacheConfig())
    assert type(unet) is UNet2DConditionModel


@pytest.mark.parametrize("place", ["unet", "block"])
def test_a_model_whose_forward_is_replaced_is_refused(place):
    unet = build("cross attention")
    module = unet if place == "unet" else unet.up_blocks[1]
    module.forward = module.forward  # as offloading does: bound to this object
    with pytest.raises(ValueError, match="without offloading"):
        apply(unet, DeepCacheConfig())
    assert type(unet) is UNet2DConditionModel


def test_a_block_whose_forward_is_replaced_later_is_refused_in_the_run():
    unet = build("cross attention")
    apply(unet, DeepCacheConfig(2, branch=1))
    unet.up_blocks[1].forward = unet.up_blocks[1].forward
    with Clock(4), pytest.raises(ValueError, match="CrossAttnUpBlock2D is replaced"):
        unet(**inputs_of(unet))


def test_guidance_in_two_calls_is_refused():
    unet = build("cross attention")
    apply(unet, DeepCacheConfig(2))
    with Clock(4), torch.no_grad():
        unet(**inputs_of(unet))
        with pytest.raises(RuntimeError, match="in one batch"):
            unet(**inputs_of(unet))


# Nothing of the model changes


def test_remove_gives_the_class_and_the_bits_back():
    unet = build("three levels")
    inputs, structure = inputs_of(unet), [id(module) for module in unet.modules()]
    before = plain(unet, **inputs)
    full_and_cached(unet, DeepCacheConfig(2, 3), inputs, inputs)
    assert type(unet) is UNet2DConditionModel
    assert [id(module) for module in unet.modules()] == structure
    assert torch.equal(plain(unet, **inputs), before)


def test_gradients_flow_through_a_full_evaluation_with_checkpointing():
    unet = seeded(UNet2DConditionModel(**BASE)).train()
    inputs = inputs_of(unet)

    def gradient():
        x = inputs["sample"].clone().requires_grad_()
        with Clock(4):
            unet(**{**inputs, "sample": x}).sample.square().sum().backward()
        return x.grad

    expected = gradient()
    apply(unet, DeepCacheConfig(2, 1))
    assert torch.equal(gradient(), expected)
    unet.enable_gradient_checkpointing()
    assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    unet = build("three levels").to(dtype)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs_of(unet).items()}
    full, cached = full_and_cached(unet, DeepCacheConfig(2, 2), inputs, inputs)
    assert torch.equal(full, plain(unet, **inputs))
    assert cached.dtype == dtype
