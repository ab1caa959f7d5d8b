"""Diffusers' own pipelines, tiny and with random weights, corrected bit for bit as by another mechanism."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny_models import ddim_pipe, noise, tiny_unet

import iec

from . import tiny_diffusers as tiny
from .by_hand import corrected_run
from .repeated_timesteps import RepeatedTimesteps
from .schedulers import FLOW_MATCHING
from .tiny_diffusers import generators, latents, part, piped, prompts, sd_pipe, sd_unet

STEPS = 3
CONFIG = iec.IECConfig(relaxation=0.5, num_iterations=2, tolerance=0.0)


def ddim():
    return DDIMScheduler(beta_end=2e-3, clip_sample=False)


def flow_euler():
    return FLOW_MATCHING["flow matching Euler"]()


def flow_heun():
    return FLOW_MATCHING["flow matching Heun"]()


def flow_unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


@dataclass
class Case:
    """A pipeline and its call. `call` may hold makers of arguments, asked anew for every run."""

    make: Callable[[Any], Any]
    scheduler: Callable[[], Any] = ddim
    call: dict[str, Any] = field(default_factory=dict)

    def pipe(self):
        return self.make(self.scheduler())

    def draw(self, pipe):
        call = {name: value() if callable(value) else value for name, value in self.call.items()}
        if "prompt_embeds" in call:
            call.setdefault("latents", latents())
            call.setdefault("output_type", "latent")
        output = pipe(num_inference_steps=STEPS, **call)
        return torch.as_tensor(output[0])


TEXT = prompts()
POOLED = prompts(2, "pooled")
PACKED = {"latents": noise(2, 16, 4, seed=51), "height": 64, "width": 64}
VIDEO = {"latents": noise(2, 4, 2, 8, 8, seed=51), "height": 64, "width": 64, "num_frames": 5, **TEXT}
PICTURE = noise(2, 3, 8, 8, seed=53).clamp(-1, 1) / 2 + 0.5
NUMPY = {"output_type": "np", "generator": generators}


def without(given, word):
    return {name: value for name, value in given.items() if word not in name}


CASES = {
    "DDIMPipeline": Case(lambda s: ddim_pipe(tiny_unet(), s), call={"batch_size": 2, **NUMPY}),
    "DDPMPipeline": Case(
        lambda s: piped("DDPMPipeline", s, unet=tiny_unet()),
        lambda: DDPMScheduler(beta_end=2e-3, clip_sample=False),
        {"batch_size": 2, **NUMPY},
    ),
    "LDMSuperResolutionPipeline": Case(
        lambda s: piped(
            "LDMSuperResolutionPipeline",
            s,
            unet=tiny_unet(in_channels=6),
            vqvae=part("VQModel", block_out_channels=(4,), norm_num_groups=2, latent_channels=3),
        ),
        call={"image": PICTURE, **NUMPY},
    ),
    "StableDiffusionPipeline, without guidance": Case(
        sd_pipe, call={"guidance_scale": 1.0, **without(TEXT, "negative")}
    ),
    "StableDiffusionPipeline, guidance": Case(sd_pipe, call=TEXT),
    "StableDiffusionPipeline, guidance rescaled": Case(
        sd_pipe,
        lambda: DDIMScheduler(beta_end=2e-3, clip_sample=False, prediction_type="v_prediction"),
        {"guidance_rescale": 0.7, **TEXT},
    ),
    "StableDiffusionImg2ImgPipeline": Case(
        lambda s: sd_pipe(s, "StableDiffusionImg2ImgPipeline", vae=tiny.vae()),
        lambda: DPMSolverMultistepScheduler(beta_end=2e-3),
        {"image": latents(), "strength": 0.7, "generator": generators, "latents": None, **TEXT},
    ),
    "StableDiffusionInpaintPipeline, 9 channels": Case(
        lambda s: sd_pipe(s, "StableDiffusionInpaintPipeline", unet=sd_unet(9), vae=tiny.vae()),
        call={
            "image": PICTURE,
            "mask_image": (PICTURE[:, :1] > 0.5).float(),
            "generator": generators,
            "height": 8,
            "width": 8,
            **TEXT,
        },
    ),
    "StableDiffusionControlNetPipeline": Case(
        lambda s: sd_pipe(s, "StableDiffusionControlNetPipeline", vae=tiny.vae(), controlnet=tiny.controlnet()),
        call={"image": PICTURE, "height": 8, "width": 8, **TEXT},
    ),
    "StableDiffusionControlNetPipeline, guess mode": Case(
        lambda s: sd_pipe(s, "StableDiffusionControlNetPipeline", vae=tiny.vae(), controlnet=tiny.controlnet()),
        call={"image": PICTURE, "height": 8, "width": 8, "guess_mode": True, **TEXT},
    ),
    "StableDiffusionPAGPipeline": Case(
        lambda s: sd_pipe(s, "StableDiffusionPAGPipeline", pag_applied_layers="down_blocks.0"),
        call={"pag_scale": 2.0, **TEXT},
    ),
    "StableDiffusionXLPipeline": Case(
        lambda s: piped("StableDiffusionXLPipeline", s, unet=tiny.sdxl_unet()),
        lambda: EulerDiscreteScheduler(beta_end=2e-3),
        POOLED,
    ),
    "DiTPipeline": Case(
        lambda s: piped("DiTPipeline", s, transformer=tiny.dit(), vae=tiny.vae()),
        call={"class_labels": [1, 7], **NUMPY},
    ),
    "PixArtAlphaPipeline": Case(
        lambda s: piped("PixArtAlphaPipeline", s, transformer=tiny.pixart()),
        lambda: DPMSolverMultistepScheduler(beta_end=2e-3),
        {"use_resolution_binning": False, "negative_prompt": None, **prompts(2, "prompt_attention_mask")},
    ),
    "StableDiffusion3Pipeline": Case(
        lambda s: piped("StableDiffusion3Pipeline", s, transformer=tiny.sd3()), flow_euler, POOLED
    ),
    "StableDiffusion3Pipeline, Heun": Case(
        lambda s: piped("StableDiffusion3Pipeline", s, transformer=tiny.sd3()), flow_heun, POOLED
    ),
    "FluxPipeline, distilled guidance": Case(
        lambda s: piped("FluxPipeline", s, transformer=tiny.flux(True)),
        flow_euler,
        {**without(POOLED, "negative"), **PACKED},
    ),
    "FluxPipeline, true guidance": Case(
        lambda s: piped("FluxPipeline", s, transformer=tiny.flux(False)),
        flow_euler,
        {"true_cfg_scale": 3.0, **POOLED, **PACKED},
    ),
    "WanPipeline": Case(lambda s: piped("WanPipeline", s, transformer=tiny.wan()), flow_unipc, VIDEO),
    "WanPipeline, two experts": Case(
        lambda s: piped("WanPipeline", s, transformer=tiny.wan(), transformer_2=tiny.wan(2), boundary_ratio=0.8),
        flow_euler,
        VIDEO,
    ),
    "Lumina2Pipeline": Case(
        lambda s: piped("Lumina2Pipeline", s, transformer=tiny.lumina2()),
        flow_euler,
        prompts(2, "prompt_attention_mask"),
    ),
    "QwenImagePipeline": Case(
        lambda s: piped("QwenImagePipeline", s, transformer=tiny.qwen()),
        flow_euler,
        {**prompts(2, "prompt_embeds_mask"), **PACKED},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_corrected_pipeline_equals_repeated_timesteps_bit_for_bit(name, record_property):
    case = CASES[name]
    record_property("pipeline", name)
    pipe = case.pipe()
    record_property("with", type(pipe.scheduler).__name__)
    cls, plain = type(pipe), case.draw(pipe)
    iec.enable(pipe, CONFIG)
    corrected = case.draw(pipe)
    summary = iec.summary(pipe)
    iec.enable(pipe, iec.IECConfig(relaxation=0.0))
    assert torch.equal(case.draw(pipe), plain)
    iec.disable(pipe)
    assert type(pipe) is cls
    assert torch.equal(case.draw(pipe), plain)
    pipe.scheduler = RepeatedTimesteps(case.scheduler())
    assert torch.equal(corrected, case.draw(pipe))
    assert (corrected - plain).abs().max() > 1e-3
    assert summary.warnings == []
    assert len(summary.corrected) == summary.num_steps


def test_inpainting_with_4_channels_equals_the_loop_bit_for_bit(record_property):
    """Between two steps the pipeline puts the noised picture back outside the mask, by the index of the next step."""
    record_property("pipeline", "StableDiffusionInpaintPipeline, 4 channels")
    record_property("with", "DDIMScheduler")
    mask, picture, start = (noise(2, 1, 8, 8, seed=54) > 0).float(), latents(seed=55), latents()
    pipe = sd_pipe(ddim(), "StableDiffusionInpaintPipeline", vae=tiny.vae())

    def draw():
        call = {"image": picture, "mask_image": mask, "masked_image_latents": latents(), "latents": start, **TEXT}
        return pipe(height=8, width=8, num_inference_steps=STEPS, output_type="latent", **call).images

    plain = draw()
    iec.enable(pipe, CONFIG)
    corrected = draw()
    iec.enable(pipe, iec.IECConfig(relaxation=0.0))
    assert torch.equal(draw(), plain)
    iec.disable(pipe)
    assert torch.equal(draw(), plain)

    scheduler = ddim()
    scheduler.set_timesteps(STEPS)
    context = torch.cat([TEXT["negative_prompt_embeds"], TEXT["prompt_embeds"]])

    def predict(x, t):
        unconditional, conditional = sd_unet()(torch.cat([x, x]), t, context).sample.chunk(2)
        return unconditional + 7.5 * (conditional - unconditional)

    def put_back(i, x):
        later = scheduler.timesteps[i + 1 : i + 2]
        known = scheduler.add_noise(picture, start, later) if len(later) else picture
        return (1 - mask) * known + mask * x

    with torch.no_grad():
        expected = corrected_run(predict, scheduler, start, (0.5, 0.5), after=put_back)
    assert torch.equal(corrected, expected)
    assert (corrected - plain).abs().max() > 1e-3
