"""One unit's training: on its own objective, against the nearest rounding and against every rounding there is."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from tiny_models import noise, seeded
from torch import nn

from iec.efficient.quantization.activations import StepQuantizer
from iec.efficient.quantization.layers import QuantizedLayer
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.ranges import search_tensor, search_weight
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig
from iec.efficient.quantization.reconstruction.training import Task, train
from iec.efficient.quantization.reconstruction.twin import Call
from iec.method.clock import Clock

STEPS = 3
CONFIG = ReconstructionConfig(iterations=150, weight_lr=0.1, regularization=1)


def generator():
    return torch.Generator().manual_seed(0)


def quantized(layer, x, bits=3, split=None):
    """`layer` in few bits, its input in 8, on one grid at all steps."""
    widths = [split, layer.weight.shape[1] - split] if split else [layer.weight.shape[1]]
    weights = [search_weight(part, bits) for part in layer.weight.detach().split(widths, 1)]
    grids = [search_tensor(part, 8) for part in (x.split(widths, 1) if split else [x])]
    inputs = [StepQuantizer(Grid(g.delta.repeat(STEPS), g.zero_point.repeat(STEPS), 8), STEPS) for g in grids]
    return QuantizedLayer(layer, weights, inputs, split)


def correlated(*shape):
    """Channels that have much in common, so that the nearest rounding is not the best."""
    common = (*shape[:2], 1) if len(shape) == 3 else (shape[0], 1, *shape[2:])
    return noise(*shape) + 2 * noise(*common, seed=1) + 0.5


def task_of(layer, x):
    with torch.no_grad():
        target = layer(x)
    return Task(Call((x,), {}), target, torch.arange(len(x)) % STEPS, torch.arange(len(x)))


LAYERS = {
    "linear": (lambda: nn.Linear(40, 30), (256, 40), None),
    "tokens": (lambda: nn.Linear(40, 30), (128, 3, 40), None),
    "convolution": (lambda: nn.Conv2d(6, 5, 3, padding=1), (128, 6, 5, 5), None),
    "split": (lambda: nn.Conv2d(6, 5, 3, padding=1), (128, 6, 5, 5), 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_beats_the_nearest_rounding_clearly(name):
    make, shape, split = LAYERS[name]
    layer, x = seeded(make()), correlated(*shape)
    unit = quantized(layer, x, split=split)
    task = task_of(layer, x)
    with Clock(STEPS):
        before = task.error(unit, 50)
        train(unit, task, CONFIG, False, generator())
        assert task.error(unit, 50) < 0.7 * before


def test_the_error_is_adarounds():
    layer, x = seeded(nn.Conv2d(6, 5, 3, padding=1)), correlated(7, 6, 5, 5)
    unit, task = quantized(layer, x), task_of(layer, x)
    task.rows = torch.tensor([0, 3, 4, 6])
    with torch.no_grad():
        weight = unit.weight()
        own = nn.functional.conv2d(fake(x, unit), weight, layer.bias, padding=1)
    expected = sum(((own - task.target)[i] ** 2).sum() for i in (0, 3, 4, 6)) / (4 * 25)
    for size in (1, 3, 99):
        with Clock(STEPS):
            assert task.error(unit, size) == pytest.approx(expected.item(), rel=1e-5)


def fake(x, unit):
    grid = unit.inputs[0].grid(0)
    return ((x / grid.delta).round() + grid.zero_point).clamp(0, 255).sub(grid.zero_point) * grid.delta


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_it_finds_the_best_of_all_roundings(seed):
    layer, x = seeded(nn.Linear(6, 1), seed), correlated(256, 6)
    unit, task = quantized(layer, x), task_of(layer, x)
    grid = unit.weight.grid(0)
    floor = (layer.weight / grid.delta).floor()
    errors = []
    for up in itertools.product((0.0, 1.0), repeat=6):
        weight = (floor + torch.tensor(up)).clamp(-grid.zero_point, 7 - grid.zero_point) * grid.delta
        errors.append((fake(x, unit) @ weight.T + layer.bias - task.target).square().mean().item())
    # The few weights of a tiny layer matter more each, so that it takes more to drive them apart.
    config = ReconstructionConfig(iterations=300, weight_lr=0.1, regularization=1, activation_lr=0, zero_point_lr=0)
    with Clock(STEPS):
        nearest = task.error(unit, 256)
        train(unit, task, config, False, generator())
        found = task.error(unit, 256)
    assert nearest > 4 * min(errors)
    assert found == pytest.approx(min(errors), rel=1e-4)


def test_what_is_trained_and_what_is_not():
    layer, x = seeded(nn.Conv2d(6, 5, 3, padding=1)), correlated(64, 6, 5, 5)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    fast = ReconstructionConfig(iterations=50, activation_lr=1e-2, zero_point_lr=1e-1, reentry_lr=1e-2)
    task, biases = task_of(layer, x), []
    for retrain in (False, True):
        unit = quantized(layer, x)
        before = copy.deepcopy(unit.inputs[0])
        with Clock(STEPS):
            train(unit, task, fast, retrain, generator())
        own = unit.inputs[0]
        assert (own.delta > 0).all()
        assert not torch.equal(own.delta, before.delta)
        assert len(set(own.delta.tolist())) == STEPS  # every step has its own
        assert torch.equal(own.zero_point, own.zero_point.round())
        assert own.zero_point.min() >= 0
        assert own.zero_point.max() <= 255
        assert not any(tensor.requires_grad for tensor in (*unit.parameters(), *unit.buffers()))
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.bias, bias)
        biases.append(unit.bias)
    assert torch.equal(biases[0], bias)
    assert not torch.equal(biases[1], bias)


def test_a_layer_without_bias_is_retrained_too():
    layer, x = seeded(nn.Linear(40, 30, bias=False)), correlated(256, 40)
    unit, task = quantized(layer, x), task_of(layer, x)
    with Clock(STEPS):
        before = task.error(unit, 50)
        train(unit, task, CONFIG, True, generator())
        assert task.error(unit, 50) < 0.7 * before
    assert unit.bias is None


def test_samples_that_do_not_count_are_not_looked_at():
    layer, x = seeded(nn.Linear(12, 6)), correlated(256, 12)
    results = []
    for spoil in (False, True):
        unit, task = quantized(layer, x), task_of(layer, x)
        task.rows = torch.arange(100, 200)
        if spoil:
            task.target[:100] = torch.nan
            task.target[200:] = torch.nan
        with Clock(STEPS):
            train(unit, task, CONFIG, False, generator())
        results.append(unit.weight())
    assert torch.equal(*results)


def test_the_regulariser_leaves_little_to_be_rounded():
    """The released code had none, so that hard rounding undid the training (D16)."""
    layer, x = seeded(nn.Conv2d(6, 5, 3, padding=1)), correlated(128, 6, 5, 5)
    task, gaps = task_of(layer, x), []
    for regularization in (0.0, 10.0):
        unit = quantized(layer, x)
        soft = []
        unit.register_forward_pre_hook(lambda module, args, soft=soft: soft.append(module.weight().detach()))
        with Clock(STEPS):
            train(unit, task, replace(CONFIG, weight_lr=0.3, regularization=regularization), False, generator())
        gaps.append((soft[-1] - unit.weight()).abs().mean().item())
    assert gaps[1] < 0.2 * gaps[0]
