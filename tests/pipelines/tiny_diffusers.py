"""Tiny components with random weights for diffusers' own pipelines: no tokenizer, no text encoder, no download.

Embeddings of the prompt go in directly. Every component is made once per process and shared.
"""

from functools import cache

import diffusers
import torch
from tiny_models import noise, seeded

SIZE, WIDTH, TOKENS = 8, 8, 5  # of the latents, of an embedding, of a prompt


@cache
def part(name, **settings):
    """One shared component: a class of diffusers with random weights."""
    return seeded(getattr(diffusers, name)(**settings))


def sd_unet(channels=4, **settings):
    return part(
        "UNet2DConditionModel",
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
        **settings,
    )


def sdxl_unet():
    return sd_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=6 * 2 + WIDTH,
    )


def controlnet():
    """Its zero convolutions are random, so that it has an effect."""
    return part(
        "ControlNetModel",
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D",),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4,),
    )


def vae():
    """An autoencoder that keeps the size of the image."""
    return part("AutoencoderKL", latent_channels=4, block_out_channels=(4,), norm_num_groups=2, sample_size=SIZE)


def dit(width=8):
    """Eight channels out of four: the variance is learned."""
    return part(
        "DiTTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=width // 2,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=SIZE // 2,
    )


def pixart():
    return part(
        "PixArtTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        cross_attention_dim=8,
        sample_size=SIZE,
        caption_channels=WIDTH,
    )


def sd3(**settings):
    return part(
        "SD3Transformer2DModel",
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=8,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=SIZE,
        **settings,
    )


def flux(distilled):
    return part(
        "FluxTransformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=distilled,
        axes_dims_rope=(2, 2, 4),
    )


def wan(layers=1):
    return part(
        "WanTransformer3DModel",
        num_attention_heads=1,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=8,
        num_layers=layers,
        rope_max_seq_len=16,
    )


def lumina2():
    return part(
        "Lumina2Transformer2DModel",
        sample_size=SIZE,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(16, 16, 16),
        cap_feat_dim=WIDTH,
    )


def qwen():
    return part(
        "QwenImageTransformer2DModel",
        in_channels=4,
        out_channels=1,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def piped(name, scheduler, **components):
    """A pipeline of diffusers; every component that is not given is absent."""
    cls = getattr(diffusers, name)
    required, _ = cls._get_signature_keys(cls)
    pipe = cls(**{**dict.fromkeys(required), **components})
    pipe.scheduler = scheduler  # past the constructor, which may switch clipping off and offset the timesteps
    return quiet(pipe)


def sd_pipe(scheduler, name="StableDiffusionPipeline", **components):
    return piped(name, scheduler, **{"unet": sd_unet(), **components}, requires_safety_checker=False)


def prompts(batch=2, *kinds):
    """Embeddings of the prompts and of the empty prompt; `kinds`: `pooled` and `mask` ones too."""
    embeddings = noise(2 * batch, TOKENS, WIDTH, seed=50)
    given = {"prompt_embeds": embeddings[:batch], "negative_prompt_embeds": embeddings[batch:]}
    if "pooled" in kinds:
        pooled = noise(2 * batch, WIDTH, seed=52)
        given |= {"pooled_prompt_embeds": pooled[:batch], "negative_pooled_prompt_embeds": pooled[batch:]}
    for name in kinds:
        if "mask" in name:
            mask = torch.ones(batch, TOKENS, dtype=torch.long)
            given |= {name: mask, f"negative_{name}": mask}
    return given


def latents(batch=2, channels=4, size=SIZE, seed=51):
    return noise(batch, channels, size, size, seed=seed)


def generators(batch=2):
    return [torch.Generator().manual_seed(60 + i) for i in range(batch)]
