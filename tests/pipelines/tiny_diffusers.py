"""Tiny components with random weights for diffusers' own pipelines: no tokenizer, no text encoder, no download.

Embeddings of the prompt go in directly. Every maker is called once per process and its component is shared.
"""

from functools import cache

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from tiny_models import noise, seeded

SIZE, WIDTH, TOKENS = 8, 8, 5  # of the latents, of an embedding, of a prompt


@cache
def sd_unet(channels=4):
    return seeded(
        UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(4,),
            layers_per_block=1,
            norm_num_groups=2,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
        )
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd_pipe(scheduler, cls=StableDiffusionPipeline, **components):
    parts = dict.fromkeys("vae text_encoder tokenizer safety_checker feature_extractor scheduler".split())
    pipe = cls(**{**parts, "unet": sd_unet(), **components}, requires_safety_checker=False)
    pipe.scheduler = scheduler  # past the constructor, which switches clipping off and offsets the timesteps
    return quiet(pipe)


def prompts(batch=2):
    """Embeddings of the prompts and of the empty prompt."""
    embeddings = noise(2 * batch, TOKENS, WIDTH, seed=50)
    return {"prompt_embeds": embeddings[:batch], "negative_prompt_embeds": embeddings[batch:]}


def latents(batch=2, channels=4, size=SIZE, seed=51):
    return noise(batch, channels, size, size, seed=seed)


def generators(batch=2):
    return [torch.Generator().manual_seed(60 + i) for i in range(batch)]
