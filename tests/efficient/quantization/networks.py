"""Tiny networks of the kinds that are quantized, and one evaluation of each."""

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from tiny_models import noise, seeded, tiny_unet

ATTENTION = {
    "layers_per_block": 2,
    "add_attention": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def unet(seed=0):
    return tiny_unet(seed, **ATTENTION)


def conditional(seed=0):
    return seeded(
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=6,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        seed,
    )


def transformer(seed=0):
    return seeded(
        DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=3, num_layers=2, sample_size=8, patch_size=2
        ),
        seed,
    )


NETWORKS = {"unet": unet, "conditional": conditional, "transformer": transformer}


def inputs_of(network, batch, seed=0):
    """The arguments of a call, at a timestep that belongs to the seed."""
    channels = network.config.in_channels
    inputs = {"timestep": torch.tensor([900 - seed] * batch)}
    if isinstance(network, UNet2DConditionModel):
        inputs["encoder_hidden_states"] = noise(batch, 3, 6, seed=seed + 50)
    elif isinstance(network, DiTTransformer2DModel):
        inputs["class_labels"] = torch.arange(batch)
    state = "hidden_states" if isinstance(network, DiTTransformer2DModel) else "sample"
    return {state: noise(batch, channels, 8, 8, seed=seed), **inputs}


def evaluate(network, seed=0, batch=2):
    """One evaluation, at a timestep that belongs to the seed."""
    with torch.no_grad():
        return network(**inputs_of(network, batch, seed)).sample
