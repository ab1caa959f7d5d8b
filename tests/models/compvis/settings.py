"""The paper's CompVis models in CompVis's own settings, at any width: what a checkpoint of theirs would hold."""

from dataclasses import replace

import torch
from tiny_models import seeded

from iec.models.component import Component
from iec.models.paper import paper_model

from .reference_autoencoder import FirstStage
from .reference_unet import UNet

# From the published configuration files, in CompVis's names.
UNETS = {
    "churches": {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 192,
        "channel_mult": (1, 2, 2, 4, 4),
        "num_res_blocks": 2,
        "attention": (1, 2, 4, 8),
        "num_heads": 8,
        "scale_shift": True,
        "resblock_updown": True,
    },
    "bedrooms": {
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 224,
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 2,
        "attention": (8, 4, 2),
        "num_head_channels": 32,
    },
    "imagenet": {
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 5),
        "num_res_blocks": 2,
        "attention": (8, 4, 2),
        "num_heads": 1,
        "context_dim": 512,
    },
}
KL = {"width": 128, "mult": (1, 2, 4, 4), "num_res_blocks": 2, "latent_channels": 4}
VQ = {"width": 128, "mult": (1, 2, 4), "num_res_blocks": 2, "latent_channels": 3, "num_codes": 8192}
FIRST_STAGES = {"churches": KL, "bedrooms": VQ, "imagenet": VQ}
NAMES = tuple(UNETS)

# Small widths of the same architectures.
_TINY_UNETS = {
    "churches": {"model_channels": 8, "num_heads": 4, "groups": 4},
    "bedrooms": {"model_channels": 8, "num_head_channels": 4, "groups": 4},
    "imagenet": {"model_channels": 8, "context_dim": 6, "groups": 4},
}
_TINY_FIRST_STAGE = {"width": 4, "groups": 2}


def tiny_unet(name, **settings):
    return seeded(UNet(**{**UNETS[name], **_TINY_UNETS[name], **settings}), seed=1)


def tiny_first_stage(name):
    settings = {**FIRST_STAGES[name], **_TINY_FIRST_STAGE}
    if "num_codes" in settings:
        settings["num_codes"] = 16
    return seeded(FirstStage(**settings), seed=2)


def tiny_paper_model(name):
    """The paper's model with small widths; the classes, blocks, levels and samplers stay."""
    model = paper_model(name)
    unet = dict(model.unet.settings)
    first = unet["block_out_channels"][0]
    unet["block_out_channels"] = [8 * width // first for width in unet["block_out_channels"]]
    unet |= {"sample_size": 2 ** (len(unet["block_out_channels"]) - 1), "norm_num_groups": 4}
    small = {"num_attention_heads": 4, "cross_attention_dim": 6, "attn_norm_num_groups": 4}
    unet |= {key: value for key, value in small.items() if key in unet}
    if name == "bedrooms":
        unet["attention_head_dim"] = 4
    changed = {"unet": replace(model.unet, settings=unet)}
    if model.autoencoder is not None:
        vae = dict(model.autoencoder.settings)
        vae["block_out_channels"] = [width // 32 for width in vae["block_out_channels"]]
        vae["norm_num_groups"] = 2
        if "num_vq_embeddings" in vae:
            vae["num_vq_embeddings"] = 16
        changed["autoencoder"] = replace(model.autoencoder, settings=vae)
    if model.class_embedder is not None:
        changed["class_embedder"] = Component("ClassEmbedder", {"num_classes": 5, "embedding_dim": 6})
    return replace(model, **changed)


def tiny_checkpoint(name, average=False):
    """A random checkpoint of a tiny model, as CompVis saves one. average: with a running average, of other weights."""
    model = tiny_paper_model(name)
    unet = tiny_unet(name).state_dict()
    alphas = model.scheduler.make().alphas_cumprod
    betas = 1 - alphas / torch.cat([torch.ones(1).double(), alphas[:-1]])
    tensors = {f"model.diffusion_model.{key}": value for key, value in unet.items()}
    tensors |= {f"first_stage_model.{key}": value for key, value in tiny_first_stage(name).state_dict().items()}
    tensors |= {"betas": betas.float(), "alphas_cumprod": alphas.float(), "sqrt_alphas_cumprod": alphas.sqrt().float()}
    if average:
        other = {key: value + 0.25 for key, value in unet.items()}
        tensors |= {f"model_ema.diffusion_model{key.replace('.', '')}": value for key, value in other.items()}
        tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    if name == "churches":
        tensors["scale_factor"] = torch.tensor(0.25)
    if name == "imagenet":
        tensors["cond_stage_model.embedding.weight"] = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    return {key: value.contiguous() for key, value in tensors.items()}
