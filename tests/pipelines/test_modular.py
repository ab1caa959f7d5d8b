"""A Modular Diffusers pipeline with guiders, bit for bit against the loop written by hand."""

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    LayerSkipConfig,
    SkipLayerGuidance,
    UniPCMultistepScheduler,
)
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep
from tiny_models import noise
from torch import nn

import iec

from .by_hand import corrected_run
from .schedulers import FLOW_MATCHING
from .tiny_diffusers import prompts, quiet, wan

STEPS, SCALE = 4, 3.0
CONFIG = iec.IECConfig(relaxation=0.5, num_iterations=2, tolerance=0.0)
SKIPPED = LayerSkipConfig([1], fqn="blocks")
# Steps 0 to 3; skip-layer guidance is on where 0 < step < 3.
GUIDERS = {
    "classifier-free": lambda: ClassifierFreeGuidance(SCALE),
    "classifier-free, rescaled": lambda: ClassifierFreeGuidance(SCALE, guidance_rescale=0.7),
    "classifier-free, in the middle": lambda: ClassifierFreeGuidance(SCALE, start=0.25, stop=0.75),
    "skip-layer": lambda: SkipLayerGuidance(
        SCALE, 2.0, skip_layer_config=SKIPPED, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=0.75
    ),
}


def modular(guider, scheduler=None):
    pipe = quiet(WanCoreDenoiseStep().init_pipeline())
    scheduler = FLOW_MATCHING["flow matching Euler"]() if scheduler is None else scheduler
    pipe.update_components(transformer=wan(2), scheduler=scheduler, guider=guider)
    return pipe


def start():
    return noise(2, 4, 2, 4, 4, seed=51)


def draw(pipe):
    return pipe(
        num_inference_steps=STEPS,
        latents=start(),
        height=32,
        width=32,
        num_frames=5,
        output="latents",
        **prompts(),
    )


class Passed(nn.Module):
    """In the place of a transformer block that is skipped."""

    def forward(self, hidden_states, *others):
        return hidden_states


def with_block(network, index, block, work):
    kept = network.blocks[index]
    network.blocks[index] = block
    try:
        return work()
    finally:
        network.blocks[index] = kept


@torch.no_grad()
def by_hand(name, scheduler):
    network, given = wan(2), prompts()
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps.tolist()

    def evaluate(x, t, kind):
        return network(x, t.expand(2), given[kind], return_dict=False)[0]

    def predict(x, t):
        step = timesteps.index(t.item())
        conditional = evaluate(x, t, "prompt_embeds")
        if name == "classifier-free, in the middle" and step not in (1, 2):
            return conditional
        unconditional = evaluate(x, t, "negative_prompt_embeds")
        output = unconditional + SCALE * (conditional - unconditional)
        if name == "skip-layer" and step in (1, 2):
            skipped = with_block(network, 1, Passed(), lambda: evaluate(x, t, "prompt_embeds"))
            return output + 2.0 * (conditional - skipped)
        if name == "classifier-free, rescaled":
            axes = (1, 2, 3, 4)
            rescaled = output * (conditional.std(axes, keepdim=True) / output.std(axes, keepdim=True))
            return 0.7 * rescaled + (1 - 0.7) * output
        return output

    return corrected_run(predict, scheduler, start(), (0.5, 0.5))


@pytest.mark.parametrize("name", GUIDERS)
def test_a_guided_modular_pipeline_equals_the_loop_bit_for_bit(name, record_property):
    record_property("pipeline", f"WanModularPipeline, {name} guider")
    record_property("with", "FlowMatchEulerDiscreteScheduler")
    pipe = modular(GUIDERS[name]())
    cls, plain = type(pipe), draw(pipe)
    iec.enable(pipe, CONFIG)
    corrected = draw(pipe)
    summary = iec.summary(pipe)
    iec.enable(pipe, iec.IECConfig(relaxation=0.0))
    assert torch.equal(draw(pipe), plain)
    iec.disable(pipe)
    assert type(pipe) is cls
    assert torch.equal(draw(pipe), plain)
    assert torch.equal(corrected, by_hand(name, FLOW_MATCHING["flow matching Euler"]()))
    assert (corrected - plain).abs().max() > 1e-3
    assert summary.corrected == list(range(STEPS))
    assert summary.all_warnings == []


@pytest.mark.parametrize(
    "guider",
    [
        lambda: AdaptiveProjectedGuidance(SCALE, adaptive_projected_guidance_momentum=-0.5),
        lambda: AutoGuidance(SCALE, auto_guidance_config=SKIPPED),
    ],
    ids=["adaptive projected, momentum", "auto-guidance"],
)
def test_other_guiders_are_bit_identical_at_relaxation_0(guider):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    plain = draw(modular(guider(), scheduler))
    pipe = modular(guider(), scheduler)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.0, num_iterations=2, tolerance=0.0)):
        assert torch.equal(draw(pipe), plain)
    pipe = modular(guider(), scheduler)
    with iec.enabled(pipe, CONFIG):
        assert (draw(pipe) - plain).abs().max() > 1e-3
    assert torch.equal(draw(modular(guider(), scheduler)), plain)


def test_a_guiders_hooks_are_gone_after_the_run():
    pipe = modular(GUIDERS["skip-layer"]())
    forwards = [module.forward for module in pipe.transformer.modules()]
    iec.enable(pipe, CONFIG)
    draw(pipe)
    iec.disable(pipe)
    registries = [vars(module).get("_diffusers_hook") for module in pipe.transformer.modules()]
    assert not any(registry.hooks for registry in registries if registry is not None)
    assert [module.forward for module in pipe.transformer.modules()] == forwards


def test_a_modular_pipeline_without_a_scheduler_is_refused():
    pipe = modular(GUIDERS["classifier-free"]())
    pipe.update_components(scheduler=None)
    with pytest.raises(ValueError, match="no scheduler"):
        iec.enable(pipe)
