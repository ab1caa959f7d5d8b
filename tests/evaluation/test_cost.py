import pytest
import torch
from tiny_models import tiny_unet

from iec.efficient import DeepCacheConfig, apply
from iec.evaluation.cost import EvaluationCost, evaluation_cost
from iec.evaluation.network_call import made_up_call


def convolution_macs(unet):
    """Multiply-adds of all convolutions and linears of one evaluation, from the shapes that pass through them."""
    total = 0

    def count(module, args, output):
        nonlocal total
        weights = module.weight.numel()
        places = output.shape[-2] * output.shape[-1] if isinstance(module, torch.nn.Conv2d) else 1
        total += weights * places

    layers = [m for m in unet.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    size = unet.config.sample_size
    unet(torch.zeros(1, 3, size, size), 0)
    for handle in handles:
        handle.remove()
    return total


def test_a_full_evaluation_is_the_multiply_adds_of_its_layers():
    unet = tiny_unet()
    expected = convolution_macs(unet)
    cost = evaluation_cost(unet, made_up_call(unet))
    assert cost.full == pytest.approx(expected, rel=0.02)  # the rest is the attention of the middle block
    assert cost.cached == cost.full
    assert cost.cached_fraction == 1


def test_a_cached_evaluation_leaves_out_the_deep_layers():
    unet = tiny_unet()
    plain = evaluation_cost(unet, made_up_call(unet))
    fractions = []
    for branch in range(3):
        apply(unet, DeepCacheConfig(5, branch=branch))
        cost = evaluation_cost(unet, made_up_call(unet))
        assert cost.full == plain.full
        fractions.append(cost.cached_fraction)
    assert 0 < fractions[0] < fractions[1] < fractions[2] < 1


def test_the_cost_of_a_run_is_full_plus_c_times_cached():
    assert EvaluationCost(full=200, cached=50).total(4, 16) == 4 + 0.25 * 16
