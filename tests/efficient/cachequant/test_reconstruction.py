"""Reconstruction beside a cache: which samples each unit trains on, what it is given, and what it may change."""

from dataclasses import replace

import pytest
import torch
from tiny_models import draw

from iec.efficient import CacheQuantConfig, CacheQuantPlan, ReconstructionConfig, apply, calibrate
from iec.efficient.cachequant.reconstruction import collect_cached, layer_roles, reconstruct_cached
from iec.efficient.quantization.layers import QuantizedLayer
from iec.efficient.quantization.reconstruction import reconstruct as reconstructing
from iec.efficient.quantization.reconstruction.roles import BEFORE, REENTERED, SKIPPED
from iec.efficient.trajectories import Trajectories
from iec.method.clock import Clock
from iec.models.unconditional import UnconditionalPipeline

from ..quantization.networks import conditional
from .small import BRANCH, QUANTIZED, STEPS, pipe_of

SHORT = ReconstructionConfig(iterations=3, samples=24, weight_lr=0.3, reentry_lr=1e-2)
RESNET = "up_blocks.1.resnets.0"  # branch 1 of two encoder entries per level


@pytest.fixture(scope="module", params=[4, 8])
def bits(request):
    return request.param


@pytest.fixture(scope="module")
def base(bits, plan):
    """A plan without reconstruction, whose config asks for one."""
    pipe = pipe_of()
    found = calibrate(pipe, replace(QUANTIZED, weights=bits), STEPS, samples=6, batch_size=4) if bits == 4 else plan
    assert found.quantization is not None
    asking = replace(found.quantization, config=replace(found.quantization.config, reconstruction=SHORT))
    return replace(found, quantization=asking, config=replace(found.config, reconstruction=SHORT))


@pytest.fixture(scope="module")
def collected(base):
    pipe = pipe_of()
    return collect_cached(pipe.unet, base, Trajectories(pipe, STEPS, 6, 4), SHORT)


@pytest.fixture(scope="module")
def tasks(base, collected):
    """Every unit's task and role as they come to training, and the plan that comes of it."""
    seen = {}
    original = reconstructing._improved

    def spy(unit, name, task, config, role, index):
        seen[name] = (task, role)
        return original(unit, name, task, config, role, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstructing, "_improved", spy)
        found = reconstruct_cached(pipe_of().unet, base, *collected)
    return seen, found


def test_the_roles_are_told_by_hand():
    unet = pipe_of().unet
    names = [name for name, module in unet.named_modules() if hasattr(module, "weight") and module.weight.dim() > 1]
    samples, _ = collected_once()
    roles = layer_roles(unet, BRANCH, names, samples)
    for name in names:
        after = name.startswith((RESNET, "up_blocks.1.resnets.1", "conv_out"))
        before = name.startswith(("conv_in", "time_embedding", "down_blocks.0.resnets.0"))
        assert roles[name] == (REENTERED if after else BEFORE if before else SKIPPED), name
    assert set(roles.values()) == {BEFORE, SKIPPED, REENTERED}


def collected_once():
    plan = calibrate(pipe_of(), replace(QUANTIZED, reconstruction=None), STEPS, samples=2, batch_size=2)
    pipe = pipe_of()
    return collect_cached(pipe.unet, plan, Trajectories(pipe, STEPS, 2, 2), SHORT)


def test_the_cached_main_input_is_the_corrected_feature_of_the_latest_full_step(base, collected):
    samples, reentry = collected
    assert reentry.resnet == RESNET
    assert torch.equal(reentry.cached, torch.tensor([step not in base.full_steps for step in samples.steps.tolist()]))
    assert reentry.cached.any()
    assert not reentry.cached.all()
    unet, seen = pipe_of().unet, []
    resnet = unet.get_submodule(RESNET)
    handle = resnet.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    pipe, trajectory = pipe_of(), []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: trajectory.append(args[:2]))
    Trajectories(pipe, STEPS, 6, 4).run()
    hook.remove()
    with torch.no_grad():
        for x, t in trajectory:
            unet(x, t)
    handle.remove()
    channels = reentry.main.shape[1]
    for i, step in enumerate(samples.steps.tolist()):
        x = samples.inputs["sample"][i]
        (batch, row) = next(
            (b, r) for b in (0, 1) for r, own in enumerate(trajectory[b * STEPS + step][0]) if torch.equal(own, x)
        )
        source = max(full for full in base.full_steps if full <= step)
        feature = seen[batch * STEPS + source][row : row + 1, :channels]
        expected = feature if step in base.full_steps else base.corrected(feature, step)
        torch.testing.assert_close(reentry.main[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_the_units_train_on_the_samples_of_their_role(tasks, collected, bits):
    seen, found = tasks
    samples, reentry = collected
    full = (~reentry.cached).nonzero().flatten()
    for task, role in seen.values():
        expected = full if role == SKIPPED else torch.arange(len(samples))
        assert torch.equal(task.rows, expected)
    roles = {role for _, role in seen.values()}
    assert roles == ({REENTERED} if bits == 8 else {BEFORE, SKIPPED, REENTERED})
    assert {unit.unit: unit.role for unit in found.quantization.units} == {n: role for n, (_, role) in seen.items()}
    for unit in found.quantization.units:
        assert unit.samples == (len(full) if unit.role == SKIPPED else len(samples))


def test_the_reentry_is_given_the_cached_path_and_its_target_is_the_full_one(tasks, collected, base):
    seen, _ = tasks
    samples, reentry = collected
    task, _ = seen[f"{RESNET}.conv_shortcut"]  # what it is given is the concatenation itself
    width = reentry.main.shape[1]
    cached = reentry.cached
    torch.testing.assert_close(task.call.args[0][cached][:, :width], reentry.main[cached])
    assert not torch.allclose(task.call.args[0][~cached][:, :width], reentry.main[~cached], rtol=1e-5)
    unet, outputs = pipe_of().unet, []
    unet.get_submodule(f"{RESNET}.conv_shortcut").register_forward_hook(lambda m, args, out: outputs.append(out))
    with torch.no_grad():
        unet(**samples.inputs)
    torch.testing.assert_close(task.target, outputs[0], rtol=1e-4, atol=1e-5)


def test_the_cached_input_is_what_a_cached_run_of_the_plan_gives(tasks, collected, base):
    """The encoder's half of the concatenation comes from the quantized layers before it."""
    seen, found = tasks
    samples, reentry = collected
    task, _ = seen[f"{RESNET}.conv_shortcut"]
    i = int(reentry.cached.nonzero()[0])
    step = int(samples.steps[i])
    unet, given = pipe_of().unet, []
    apply(unet, found)
    layer = unet.get_submodule(f"{RESNET}.conv_shortcut")
    assert isinstance(layer, QuantizedLayer)
    layer.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    one = {name: value[i : i + 1] for name, value in samples.inputs.items()}
    with Clock(STEPS) as clock, torch.no_grad():
        clock.step, clock.storage[unet] = step, torch.zeros_like(reentry.main[i : i + 1])
        unet(**one)
        assert clock.full is False
    width = reentry.main.shape[1]
    torch.testing.assert_close(given[0][:, width:], task.call.args[0][i : i + 1, width:], rtol=1e-3, atol=1e-3)


def test_from_the_reentry_on_weights_and_biases_are_trained_and_dec_of_layers_is_off(tasks, base, bits):
    _, found = tasks
    assert base.layers
    assert found.layers == {}
    assert all(torch.equal(a, b) for a, b in zip(found.feature, base.feature, strict=True))
    reentered = {unit.unit for unit in found.quantization.units if unit.role == REENTERED and unit.kept}
    assert reentered
    for name, own in found.quantization.reconstructed.items():
        assert (own.bias is not None) == (name in reentered)
    if bits == 8:
        assert set(found.quantization.reconstructed) == reentered


def test_a_plan_is_the_same_after_a_round_trip(tasks, tmp_path):
    _, found = tasks
    found.save_pretrained(tmp_path)
    loaded = CacheQuantPlan.from_pretrained(tmp_path)
    assert loaded.config == found.config
    assert loaded.quantization.units == found.quantization.units
    images = []
    for plan, storage in ((found, "simulate"), (loaded, "simulate"), (loaded, "packed")):
        pipe = pipe_of()
        apply(pipe, plan, storage=storage, keep_original=True)
        images.append(draw(pipe, STEPS))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_held_out_images_are_nearer_to_full_precision():
    exact, errors = draw(pipe_of(), STEPS, batch=8, seed=3), []
    config = replace(QUANTIZED, weights=4)
    for reconstruction in (None, ReconstructionConfig("block", iterations=60, samples=96)):
        pipe = pipe_of()
        plan = calibrate(pipe, replace(config, reconstruction=reconstruction), STEPS, samples=12, batch_size=12)
        apply(pipe, plan)
        errors.append((draw(pipe, STEPS, batch=8, seed=3) - exact).square().mean().item())
    assert errors[1] < 0.8 * errors[0]


def test_a_conditional_unet_is_reconstructed_beside_its_cache():
    class Prompted(UnconditionalPipeline):
        @torch.no_grad()
        def __call__(self, batch_size=1, generator=None, num_inference_steps=4, output_type="pt"):
            self.scheduler.set_timesteps(num_inference_steps)
            x = torch.stack([torch.randn(4, 8, 8, generator=own) for own in generator])
            for t in self.scheduler.timesteps:
                eps = self.unet(x, t, encoder_hidden_states=torch.ones(len(x), 3, 6)).sample
                x = self.scheduler.step(eps, t, x).prev_sample
            return x

    pipe = Prompted(conditional(), pipe_of().scheduler)
    config = CacheQuantConfig(2, weights=4, reconstruction=replace(SHORT, granularity="block", samples=8))
    plan = calibrate(pipe, config, 4, samples=4)
    assert {unit.role for unit in plan.quantization.units} == {BEFORE, SKIPPED, REENTERED}
    assert any(name.endswith("transformer_blocks.0") for name in (unit.unit for unit in plan.quantization.units))


def test_reconstruction_needs_quantization():
    with pytest.raises(ValueError, match="nothing to reconstruct without quantization"):
        CacheQuantConfig(weights=None, reconstruction=SHORT)
