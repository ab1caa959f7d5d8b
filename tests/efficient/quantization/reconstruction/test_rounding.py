"""AdaRound's mathematics against values worked out by hand."""

import math

import pytest
import torch
from tiny_models import noise

from iec.efficient.quantization.quantizer import Grid, fake_quantize
from iec.efficient.quantization.ranges import search_weight
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig
from iec.efficient.quantization.reconstruction.learned_weight import LearnedWeight
from iec.efficient.quantization.reconstruction.rounding import alpha_of, beta_at, rounding_loss, soft_rounding


def test_the_rectified_sigmoid_by_hand():
    # sigmoid(ln 3) = 3/4, so h = 0.75 * 1.2 - 0.1 = 0.8; sigmoid(-ln 3) = 1/4; beyond ln 11 it is 1.
    alpha = torch.tensor([0.0, math.log(3), -math.log(3), math.log(11), 4.0, -4.0])
    assert soft_rounding(alpha).tolist() == pytest.approx([0.5, 0.8, 0.2, 1.0, 1.0, 0.0], abs=1e-6)


def test_alpha_of_undoes_it():
    fraction = torch.linspace(0, 1, 21)
    assert torch.allclose(soft_rounding(alpha_of(fraction)), fraction, atol=1e-6)


def test_the_regulariser_by_hand():
    # h = 0.8: |2 h - 1| = 0.6; at beta 2 each costs 1 - 0.36, at beta 20 almost 1; h = 0 costs nothing, h = 1/2 one.
    alpha = torch.tensor([math.log(3), -math.log(3), -4.0, 0.0])
    assert rounding_loss(alpha, 2.0).item() == pytest.approx(2 * 0.64 + 1)
    assert rounding_loss(alpha, 20.0).item() == pytest.approx(2 * (1 - 0.6**20) + 1)


def test_the_exponent_falls_from_20_to_2_after_the_warm_up():
    betas = [beta_at(i, 100) for i in range(100)]
    assert betas[:20] == [None] * 20
    assert betas[20] == 20
    assert betas[60] == pytest.approx(11)  # half way of a half cosine
    assert betas[40] == pytest.approx(2 + 9 * (1 + math.sqrt(0.5)))  # a quarter of it
    assert 2 < betas[99] < 2.01
    assert betas[20:] == sorted(betas[20:], reverse=True)


def learned(bits=4, split=3, seed=0):
    weight = noise(5, 7, 3, 3, seed=seed)
    grids = [search_weight(part, bits) for part in weight.split([split, 7 - split], 1)]
    return weight, grids, LearnedWeight(weight, [split, 7 - split], grids)


def test_at_first_a_learned_weight_is_the_weight_and_hardens_to_the_nearest():
    weight, grids, own = learned()
    parts = list(zip(weight.split([3, 4], 1), grids, strict=True))
    nearest = torch.cat([fake_quantize(part, grid) for part, grid in parts], 1)
    clamped = [part.clamp(-g.zero_point * g.delta, (15 - g.zero_point) * g.delta) for part, g in parts]
    assert torch.allclose(own(), torch.cat(clamped, 1), atol=1e-6)
    assert not torch.equal(weight, torch.cat(clamped, 1))  # some lie outside
    assert torch.equal(own.hardened()(), nearest)


def test_alpha_decides_between_the_two_neighbours_by_hand():
    # delta 1, zero point 2, 2 bits: -2 .. 1.
    weight = torch.tensor([[0.3, -1.2, 0.9, 5.0, -7.0]])
    own = LearnedWeight(weight, [5], [Grid(torch.ones(1, 1), torch.full((1, 1), 2.0), 2)])
    assert own.hardened()().tolist() == [[0, -1, 1, 1, -2]]
    for alpha, expected in ((5.0, [1, -1, 1, 1, -2]), (-5.0, [0, -2, 0, 1, -2])):
        with torch.no_grad():
            own.alphas[0].fill_(alpha)
        assert own().tolist() == own.hardened()().tolist() == [expected]
    with torch.no_grad():
        own.alphas[0].zero_()
    assert own()[0].tolist() == pytest.approx([0.5, -1.5, 0.5, 1, -2])  # h = 1/2, within the grid


def test_a_learned_zero_point_is_rounded_and_stays_on_the_grid():
    _, grids, own = learned()
    with torch.no_grad():
        own.zero_points[0].add_(0.6)
        own.zero_points[1].sub_(99)
    hard = own.hardened()
    assert torch.equal(hard.grid(0).zero_point, (grids[0].zero_point + 1).clamp(max=15))
    assert not hard.grid(1).zero_point.any()
    assert hard.codes(1).max() <= 15


def test_all_that_is_learned_has_a_gradient():
    _, _, own = learned(bits=2)
    own().square().sum().backward()
    for parameter in own.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"granularity": "network"}, ValueError, "use layer or block"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1"),
        ({"samples": 2.5}, TypeError, "samples must be an integer"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer"),
        ({"regularization": -1}, ValueError, "regularization must be finite and not negative"),
        ({"weight_lr": math.inf}, ValueError, "weight_lr must be finite"),
        ({"activation_lr": "1"}, TypeError, "activation_lr must be a number"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ReconstructionConfig(**settings)


def test_the_presets_are_those_of_the_spec():
    paper, released = ReconstructionConfig.paper(), ReconstructionConfig.released(granularity="block")
    assert (paper.iterations, paper.samples, paper.batch_size, paper.granularity) == (3000, 1024, 32, "layer")
    assert (paper.weight_lr, paper.activation_lr, paper.zero_point_lr, paper.reentry_lr) == (1e-4, 1e-4, 1e-4, 1e-6)
    assert (paper.regularization, released.regularization, released.granularity) == (0.01, 0, "block")
