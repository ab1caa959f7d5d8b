"""A tiny Stable Diffusion pipeline of all its parts, and its guided denoiser by hand."""

import string

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from tiny_models import image_generators, noise, seeded
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .conditional import WIDTH, build, by_hand

SCALE = 3.0  # of guidance
PROMPTS = ["a cat", "two dogs"]
LENGTH = 9  # of a prompt in tokens
BETAS = {"beta_end": 2e-3, "steps_offset": 1}


def tokenizer():
    """Letters, and no merges."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(vocabulary)}, [], model_max_length=LENGTH)


def text_encoder():
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return seeded(CLIPTextModel(config))


def vae():
    """Latents are 8 times smaller than images; nothing is decoded."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(block_out_channels=(2,) * 4, norm_num_groups=1, latent_channels=4, **kinds)


def ddim():
    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **BETAS)


def plms():
    return PNDMScheduler(skip_prk_steps=True, **BETAS)


def pipe_of(scheduler, architecture="cross attention"):
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=build(architecture),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, steps, scale=SCALE, **settings):
    """The latents of one call with two prompts."""
    settings = {"latents": noise(2, 4, 8, 8), "generator": image_generators(2), "output_type": "latent", **settings}
    return pipe(PROMPTS, num_inference_steps=steps, guidance_scale=scale, **settings).images


class Guided:
    """The guided denoiser of a pipeline, with a feature cache, layer by layer; a scale of 1 is no guidance."""

    def __init__(self, pipe, branch, scale=SCALE):
        text, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, scale > 1)
        self.unet, self.branch, self.scale = pipe.unet, branch, scale
        self.text = torch.cat([empty, text]) if scale > 1 else text

    def full(self, x, t):
        output, feature = self.evaluate(x, t, None)
        return output, feature

    def cached(self, x, t, feature):
        return self.evaluate(x, t, feature)[0]

    def evaluate(self, x, t, feature):
        repeats = len(self.text) // len(x)
        output, feature = by_hand(
            self.unet,
            self.branch,
            feature,
            sample=x.repeat(repeats, 1, 1, 1),
            timestep=t,
            encoder_hidden_states=self.text,
        )
        if self.scale > 1:
            unconditional, conditional = output.chunk(2)
            output = unconditional + self.scale * (conditional - unconditional)
        return output, feature
