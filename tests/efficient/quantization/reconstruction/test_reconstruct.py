"""Reconstruction of whole networks: better outputs, plans that load, interruptions that leave no trace."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from tiny_models import ddim_pipe, draw, noise, tiny_unet

from iec.efficient import QuantizationConfig, QuantizationPlan, ReconstructionConfig, apply, calibrate, remove
from iec.efficient.quantization.config import with_reconstruction
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.layers import QuantizedLayer, Reconstructed
from iec.efficient.quantization.network import search_weights
from iec.efficient.quantization.reconstruction.reconstruct import reconstruct
from iec.efficient.quantization.reconstruction.samples import Samples, collect_samples
from iec.efficient.quantization.weights import CodedWeight, PackedWeight, SimulatedWeight
from iec.efficient.trajectories import Trajectories
from iec.storage.fingerprint import fingerprint

from ..networks import NETWORKS, inputs_of
from .test_twin import planted as planted_grids

STEPS = 10
W4 = QuantizationConfig(weights=4)
QUICK = ReconstructionConfig(iterations=60, samples=128)
SHORT = ReconstructionConfig(iterations=3, samples=8, weight_lr=0.3)


def unet(seed=0):
    return tiny_unet(seed)


@pytest.fixture(scope="module")
def nearest():
    return calibrate(ddim_pipe(unet()), W4, STEPS, samples=16)


@pytest.fixture(scope="module")
def samples():
    pipe = ddim_pipe(unet())
    return collect_samples(pipe.unet, Trajectories(pipe, STEPS, 16), STEPS, QUICK.samples)


def asking(plan, config=SHORT):
    return replace(plan, config=replace(plan.config, reconstruction=config))


@pytest.fixture(scope="module")
def plan(nearest, samples):
    return reconstruct(unet(), asking(nearest, QUICK), samples)


def images(plan, seed):
    pipe = ddim_pipe(unet())
    if plan is not None:
        apply(pipe, plan)
    return draw(pipe, STEPS, batch=8, seed=seed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_held_out_images_are_nearer_to_full_precision(nearest, plan, seed):
    exact = images(None, seed)
    before, after = ((images(one, seed) - exact).square().mean().item() for one in (nearest, plan))
    assert after < 0.7 * before  # 1.5 dB


def test_every_unit_is_recorded_in_the_order_of_the_network(plan):
    names = [unit.unit for unit in plan.units]
    assert sorted(names) == sorted(plan.weights)
    assert names[:2] == ["time_embedding.linear_1", "time_embedding.linear_2"]
    assert names[-1] == "conv_out"
    assert all(unit.role == 0 and unit.samples == 128 for unit in plan.units)
    assert all(unit.kept == (unit.after < unit.before) for unit in plan.units)
    assert {unit.unit for unit in plan.units if unit.kept} == set(plan.reconstructed)
    assert sum(unit.kept for unit in plan.units) > 0.8 * len(plan.units)


def test_what_is_found_lies_beside_the_nearest_on_the_same_grid(nearest, plan):
    differing = 0
    for name, found in plan.reconstructed.items():
        weight = dict(unet().named_modules())[name].weight
        parts = torch.split(weight, [codes.shape[1] for codes in found.codes], 1)
        for part, codes, grid, before in zip(
            parts, found.codes, plan.weights[name], nearest.weights[name], strict=True
        ):
            assert torch.equal(grid.delta, before.delta)
            assert found.bias is None
            largest = 2**grid.bits - 1
            floor = (part / grid.delta).floor() + grid.zero_point
            allowed = [floor.clamp(0, largest), (floor + 1).clamp(0, largest)]
            assert all(((codes == allowed[0]) | (codes == allowed[1])).flatten())
            differing += (
                (codes != (torch.round(part / before.delta) + before.zero_point).clamp(0, largest)).sum().item()
            )
        for i in range(len(found.codes)):
            assert not torch.equal(plan.activations[f"{name}:{i}"].delta, nearest.activations[f"{name}:{i}"].delta)
    assert differing > 100


def test_the_float_network_stays_as_it_is(nearest, samples):
    network = unet()
    weights = fingerprint(network)
    network.requires_grad_(True)
    reconstruct(network, asking(nearest), Samples(samples.steps[:8], {k: v[:8] for k, v in samples.inputs.items()}))
    assert type(network) is UNet2DModel
    assert fingerprint(network) == weights
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_unit_that_is_no_better_keeps_the_nearest_rounding(nearest, samples):
    wild = ReconstructionConfig(iterations=5, samples=8, weight_lr=100, activation_lr=5, zero_point_lr=50)
    few = Samples(samples.steps[:8], {k: v[:8] for k, v in samples.inputs.items()})
    plan = reconstruct(unet(), asking(nearest, wild), few)
    left = [unit.unit for unit in plan.units if not unit.kept]
    assert len(left) > len(plan.units) / 2
    for name in left:
        assert name not in plan.reconstructed
        assert plan.weights[name] is nearest.weights[name]
        assert plan.activations[f"{name}:0"] is nearest.activations[f"{name}:0"]


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_runs_on_every_kind_of_network(name, granularity):
    network = NETWORKS[name]()
    config = replace(W4, reconstruction=replace(SHORT, granularity=granularity, batch_size=4))
    with_steps = planted(network, config)
    samples = Samples(torch.arange(6) % 3, inputs_of(network, 6))
    plan = reconstruct(network, with_steps, samples)
    assert len(plan.units) == len({unit.unit for unit in plan.units})
    assert any(unit.kept for unit in plan.units)
    operands = {key for key in plan.activations if key.endswith((":query", ":probabilities"))}
    trained = {key for key in operands if plan.activations[key] is not with_steps.activations[key]}
    assert (granularity == "block") == bool(trained)


def planted(network, config):
    weights = search_weights(network, coverage(network, config))
    return QuantizationPlan(config, 3, weights, planted_grids(network), fingerprint(network))


def test_a_half_precision_network_is_reconstructed_in_float32(nearest, samples):
    few = Samples(samples.steps[:8], {k: v[:8] for k, v in samples.inputs.items()})
    coarse = unet().bfloat16()
    plan = replace(asking(nearest), model=fingerprint(coarse))
    found = reconstruct(coarse, plan, few)
    assert coarse.conv_in.weight.dtype == torch.bfloat16
    exact = reconstruct(copy.deepcopy(coarse).float(), plan, few)
    for name, own in exact.reconstructed.items():
        assert all(torch.equal(a, b) for a, b in zip(own.codes, found.reconstructed[name].codes, strict=True))
    apply(coarse, found)
    remove(coarse)
    assert fingerprint(coarse) == plan.model


# Plans


def test_a_plan_is_the_same_after_a_round_trip_in_both_storages(plan, tmp_path):
    plan.save_pretrained(tmp_path / "plan")
    loaded = QuantizationPlan.from_pretrained(tmp_path / "plan")
    assert loaded.config == plan.config
    assert loaded.units == plan.units
    assert loaded.reconstructed.keys() == plan.reconstructed.keys()
    for name, found in plan.reconstructed.items():
        assert all(torch.equal(a, b) for a, b in zip(found.codes, loaded.reconstructed[name].codes, strict=True))
    expected = images(plan, 1)
    for storage, kind in (("simulate", CodedWeight), ("packed", PackedWeight)):
        pipe = ddim_pipe(unet())
        apply(pipe, loaded, storage=storage, keep_original=True)
        layers = [module for module in pipe.unet.modules() if isinstance(module, QuantizedLayer)]
        kinds = {type(layer.weight) for layer in layers}
        assert kind in kinds <= {kind, SimulatedWeight}
        assert torch.equal(draw(pipe, STEPS, batch=8, seed=1), expected)
        remove(pipe)
        assert torch.equal(draw(pipe, STEPS, batch=8, seed=1), images(None, 1))


def test_biases_survive_the_round_trip(nearest, tmp_path):
    name = "conv_out"
    weight = unet().conv_out.weight
    found = [torch.zeros(weight.shape, dtype=torch.uint8)]
    plan = replace(nearest, reconstructed={name: Reconstructed(found, noise(3))})
    plan.save_pretrained(tmp_path)
    loaded = QuantizationPlan.from_pretrained(tmp_path).reconstructed[name]
    assert torch.equal(loaded.bias, noise(3))
    pipe = ddim_pipe(unet())
    apply(pipe, tmp_path)
    assert torch.equal(pipe.unet.conv_out.bias, noise(3))


def test_an_old_plan_has_no_reconstruction(nearest):
    assert nearest.config.reconstruction is None
    assert nearest.reconstructed == {}
    assert with_reconstruction({"weights": 4}) == {"weights": 4, "reconstruction": None}
    with pytest.raises(TypeError, match="must be a ReconstructionConfig or None, but is a dict"):
        QuantizationConfig(reconstruction={"iterations": 3})
    with pytest.raises(ValueError, match="asks for no reconstruction"):
        reconstruct(unet(), nearest, Samples(torch.zeros(0), {}))


# Interruptions


def stop_after(units):
    calls = []

    def on_progress(left):
        calls.append(left)
        if len(calls) == units:
            raise KeyboardInterrupt

    return on_progress


def test_an_interrupted_reconstruction_goes_on_to_the_same_bytes(nearest, samples, tmp_path):
    few = Samples(samples.steps[:8], {k: v[:8] for k, v in samples.inputs.items()})
    plan = asking(nearest)
    left = []
    reconstruct(unet(), plan, few, folder=tmp_path / "whole", on_progress=left.append).save_pretrained(tmp_path / "a")
    assert left == list(reversed(range(len(plan.weights))))
    for units in (1, 5):
        with pytest.raises(KeyboardInterrupt):
            reconstruct(unet(), plan, few, folder=tmp_path / "cut", on_progress=stop_after(units))
    left = []
    reconstruct(unet(), plan, few, folder=tmp_path / "cut", on_progress=left.append).save_pretrained(tmp_path / "b")
    # One unit, then five more were finished before; the first that is told now is the seventh.
    assert left[0] == len(plan.weights) - 7
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_of_another_reconstruction_is_refused(nearest, samples, tmp_path):
    few = Samples(samples.steps[:8], {k: v[:8] for k, v in samples.inputs.items()})
    with pytest.raises(KeyboardInterrupt):
        reconstruct(unet(), asking(nearest), few, folder=tmp_path, on_progress=stop_after(1))
    other = Samples(samples.steps[8:16], {k: v[8:16] for k, v in samples.inputs.items()})
    for plan, own in ((asking(nearest, replace(SHORT, iterations=4)), few), (asking(nearest), other)):
        with pytest.raises(ValueError, match="unfinished reconstruction of another model or with other settings"):
            reconstruct(unet(), plan, own, folder=tmp_path)


def test_calibrate_reconstructs_at_the_end_and_counts_the_units(tmp_path):
    told = []
    config = replace(W4, reconstruction=SHORT)
    plan = calibrate(ddim_pipe(unet()), config, 3, samples=4, on_progress=lambda *counts: told.append(counts))
    assert len(plan.units) == len(plan.weights)
    total = 2 * 4 + len(plan.units)
    assert told == [(4, total), (8, total), *((8 + i + 1, total) for i in range(len(plan.units)))]
