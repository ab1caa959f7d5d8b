"""DeepCache on every supported architecture and every branch, against plain UNets with hooks."""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from tiny_models import noise, tiny_net, tiny_unet
from torch.utils.flop_counter import FlopCounterMode

from iec.efficient import DeepCacheConfig, apply, remove
from iec.method.clock import Clock

from .architectures import (
    ARCHITECTURES,
    BRANCHES,
    ENTRIES,
    build,
    decoder_resnets,
    evaluate,
    inputs_of,
    plain,
    reference_cached_step,
    run_of,
    skip_channels,
)


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_number_of_entries_is_the_unets(name):
    unet = build(name)
    assert len(skip_channels(unet)) == ENTRIES[name] == len(decoder_resnets(unet))


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_a_full_evaluation_is_bit_identical(name, branch):
    unet = build(name)
    expected = [plain(unet, seed) for seed in range(3)]
    apply(unet, DeepCacheConfig(1, branch))
    with run_of() as clock:
        for step, output in enumerate(expected):
            assert torch.equal(evaluate(unet, clock, step, step), output)
            assert clock.full is True


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_a_cached_evaluation_takes_the_stored_main_input(name, branch):
    unet = build(name)
    expected = reference_cached_step(unet, branch, full_seed=0, cached_seed=1)
    ordinary = plain(unet, 1)
    apply(unet, DeepCacheConfig(3, branch))
    with run_of() as clock:
        assert torch.equal(evaluate(unet, clock, 0, 0), plain(unet, 0))
        cached = evaluate(unet, clock, 1, 1)
        assert clock.full is False
        torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-6)
        assert (cached - ordinary).abs().max() > 1e-4
        assert torch.equal(evaluate(unet, clock, 2, 1), cached)
        # The next full step replaces the feature.
        assert torch.equal(evaluate(unet, clock, 3, 1), ordinary)
        torch.testing.assert_close(evaluate(unet, clock, 4, 1), ordinary, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cached_evaluation_costs_less_the_lower_the_branch(name):
    unet = build(name)
    full = flops(lambda: plain(unet))
    costs = []
    for branch in range(ENTRIES[name]):
        apply(unet, DeepCacheConfig(2, branch))
        with run_of() as clock:
            assert flops(lambda c=clock: evaluate(unet, c, 0)) == full
            costs.append(flops(lambda c=clock: evaluate(unet, c, 1)))
    # The deepest branch skips the middle block alone, which one architecture does not have.
    assert costs == sorted(set(costs))
    assert costs[-1] == full if unet.mid_block is None else costs[-1] < full


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_a_cached_evaluation_runs_the_layers_of_its_branch_and_no_other(name, branch):
    """Branch s: encoder entries 0..s, and the last s+1 decoder ResNets."""
    unet = build(name)
    apply(unet, DeepCacheConfig(2, branch))
    with run_of() as clock:
        evaluate(unet, clock, 0)
        ran = []
        handles = [
            module.register_forward_hook(lambda module, args, output: ran.append(module))
            for module in unet.modules()
            if type(module).__name__ in ("ResnetBlock2D", "Downsample2D", "UNetMidBlock2D", "Attention", "Upsample2D")
        ]
        evaluate(unet, clock, 1)
        for handle in handles:
            handle.remove()
    makers = encoder_makers(unet)
    assert [module for module in ran if any(module is maker for maker in makers)] == makers[:branch]
    decoder = decoder_resnets(unet)
    own = [module for module in ran if any(module is resnet for resnet in decoder)]
    assert own == decoder[len(decoder) - 1 - branch :]
    assert unet.mid_block not in ran
    attentions = {id(a) for block in [*unet.down_blocks, *unet.up_blocks] for a in getattr(block, "attentions", [])}
    with_attention = [*encoder_with_attention(unet)[:branch], *decoder_with_attention(unet)[-1 - branch :]]
    assert sum(id(module) in attentions for module in ran) == sum(with_attention)


def encoder_makers(unet):
    """The layer that makes each entry after the first."""
    makers = []
    for block in unet.down_blocks:
        makers += [*block.resnets, *(block.downsamplers or [])]
    return makers


def encoder_with_attention(unet):
    flags = []
    for block in unet.down_blocks:
        flags += [hasattr(block, "attentions")] * len(block.resnets) + [False] * len(block.downsamplers or [])
    return flags


def decoder_with_attention(unet):
    return [hasattr(block, "attentions") for block in unet.up_blocks for _ in block.resnets]


@pytest.mark.parametrize("name", ["two layers and attention", "plain", "resnet blocks"])
def test_the_default_branch_is_the_first_downsampler(name):
    unet = build(name)
    layers = unet.config.layers_per_block
    outputs = []
    for branch in (None, layers + 1):
        apply(unet, DeepCacheConfig(2, branch))
        with run_of() as clock:
            evaluate(unet, clock, 0)
            ran = []
            handle = unet.down_blocks[0].downsamplers[0].register_forward_hook(lambda m, a, o, ran=ran: ran.append(m))
            deeper = unet.down_blocks[1].resnets[0].register_forward_hook(lambda m, a, o: pytest.fail("too deep"))
            outputs.append(evaluate(unet, clock, 1, 1))
            handle.remove()
            deeper.remove()
            assert len(ran) == 1
    assert torch.equal(*outputs)


def test_the_return_type_is_the_models():
    unet = tiny_unet()
    apply(unet, DeepCacheConfig(2))
    args, _ = inputs_of(unet)
    with run_of():
        output = unet(*args)
    with run_of():
        (sample,) = unet(*args, return_dict=False)
    assert isinstance(output, UNet2DOutput)
    assert torch.equal(sample, output.sample)


def test_gradients_flow_through_a_full_evaluation():
    unet = tiny_unet()
    x, t = inputs_of(unet)[0]

    def gradient(model):
        y = x.clone().requires_grad_()
        model(y, t).sample.square().sum().backward()
        return y.grad

    expected = gradient(unet)
    apply(unet, DeepCacheConfig(2))
    with run_of():
        assert torch.equal(gradient(unet), expected)


# What is refused


@pytest.mark.parametrize(
    ("down", "up", "block"),
    [
        (("SkipDownBlock2D", "DownBlock2D"), ("UpBlock2D", "SkipUpBlock2D"), "SkipDownBlock2D"),
        (("DownBlock2D", "AttnSkipDownBlock2D"), ("AttnSkipUpBlock2D", "UpBlock2D"), "AttnSkipDownBlock2D"),
        (("DownBlock2D", "KDownBlock2D"), ("KUpBlock2D", "UpBlock2D"), "KDownBlock2D"),
    ],
)
def test_a_block_that_cannot_be_cut_is_refused_by_name(down, up, block):
    types = {"down_block_types": down, "up_block_types": up}
    unet = tiny_unet(**types, norm_num_groups=8, block_out_channels=(32, 32))
    with pytest.raises(ValueError, match=block):
        apply(unet, DeepCacheConfig())
    assert type(unet) is UNet2DModel


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_branch_that_the_unet_lacks_is_refused(name):
    unet, count = build(name), ENTRIES[name]
    with pytest.raises(ValueError, match=f"Branch {count} does not exist: .* 0 to {count - 1}"):
        apply(unet, DeepCacheConfig(2, count))
    assert type(unet) is UNet2DModel


def test_the_default_branch_of_a_unet_without_a_downsampler_is_one_it_has_or_is_refused_by_name():
    unet = build("one level")
    with pytest.raises(ValueError, match="branches 0 to 1"):
        apply(unet, DeepCacheConfig(2))


@pytest.mark.parametrize("make", [tiny_net, lambda: torch.nn.Conv2d(3, 3, 1)])
def test_another_network_is_refused(make):
    with pytest.raises(TypeError, match="UNet2DModel"):
        apply(make(), DeepCacheConfig())


def test_outside_a_run_the_model_says_how_to_call_it():
    unet = tiny_unet()
    apply(unet, DeepCacheConfig())
    with pytest.raises(RuntimeError, match=r"through its pipeline or through iec\.sample"):
        unet(noise(1, 3, 8, 8), 5)


def test_an_interval_longer_than_the_run_is_refused_before_any_layer_runs():
    unet = tiny_unet()
    apply(unet, DeepCacheConfig(11))
    unet.conv_in.register_forward_pre_hook(lambda module, args: pytest.fail("evaluated"))
    with Clock(10), pytest.raises(ValueError, match="11 is longer"):
        unet(noise(1, 3, 8, 8), 5)


def test_a_cached_evaluation_before_any_full_one_is_refused_clearly():
    """A loop of one's own that begins inside a run has nothing stored."""
    unet = tiny_unet()
    apply(unet, DeepCacheConfig(5))
    with run_of() as clock, pytest.raises(RuntimeError, match="full"):
        evaluate(unet, clock, 3)


# Nothing of the model changes


def test_remove_gives_the_class_and_the_bits_back():
    unet = tiny_unet()
    before, state = plain(unet), {name: id(value) for name, value in vars(unet).items()}
    apply(unet, DeepCacheConfig(3))
    with run_of() as clock:
        evaluate(unet, clock, 0)
        evaluate(unet, clock, 1)
    remove(unet)
    assert type(unet) is UNet2DModel
    assert {name: id(value) for name, value in vars(unet).items()} == state
    args, kwargs = inputs_of(unet)
    assert torch.equal(unet(*args, **kwargs).sample, before)


def test_an_applied_unet_looks_like_itself():
    unet = tiny_unet()
    before = (list(unet.state_dict()), [name for name, _ in unet.named_modules()], repr(unet), unet.dtype)
    apply(unet, DeepCacheConfig())
    assert isinstance(unet, UNet2DModel)
    assert type(unet).__name__ == "UNet2DModel"
    assert (list(unet.state_dict()), [name for name, _ in unet.named_modules()], repr(unet), unet.dtype) == before
    with run_of() as clock:
        evaluate(unet, clock, 0)
        evaluate(unet, clock, 1)
    assert (list(unet.state_dict()), [name for name, _ in unet.named_modules()], repr(unet), unet.dtype) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_channels_last(dtype):
    unet = tiny_unet().to(dtype, memory_format=torch.channels_last)
    x = noise(2, 3, 8, 8).to(dtype)
    expected = unet(x, 5).sample
    apply(unet, DeepCacheConfig(2))
    with run_of() as clock:
        assert torch.equal(unet(x, 5).sample, expected)
        clock.advance()
        assert unet(x, 5).sample.dtype == dtype
