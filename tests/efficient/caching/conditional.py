"""Conditional UNets of every kind of block that DeepCache cuts, and their evaluation layer by layer, by hand."""

import torch
from diffusers import UNet2DConditionModel
from tiny_models import noise, seeded

TOKENS, WIDTH = 5, 6  # of the text
BASE = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": (8, 16, 16),
}
ARCHITECTURES = {
    "cross attention": {},
    "three levels": {
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "uneven": {"layers_per_block": (1, 2), "transformer_layers_per_block": (2, 1), "use_linear_projection": True},
    "one level": {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
    "simple attention": SIMPLE,
    "self-attention": {
        "down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D"),
    },
    "no middle": {"mid_block_type": None},
    "plain middle": {"mid_block_type": "UNetMidBlock2D", "resnet_time_scale_shift": "scale_shift"},
    "classes": {"num_class_embeds": 3, "class_embeddings_concat": True},
    "sizes and crops": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 24 + 7,
        "time_cond_proj_dim": 5,
    },
}


def count_entries(unet):
    """1 (the input convolution), the ResNets, and the downsamplers."""
    return 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in unet.down_blocks)


def build(name, seed=0):
    return seeded(UNet2DConditionModel(**{**BASE, **ARCHITECTURES[name]}), seed)


BRANCHES = [(name, branch) for name in ARCHITECTURES for branch in range(count_entries(build(name)))]
# Latents of 9x11 halve to 5x6, which no upsampler by 2 gives back; these architectures are told the size.
ODD = [(name, branch) for name, branch in BRANCHES if name not in ("simple attention", "self-attention")]


def inputs_of(unet, seed=0, batch=2, size=(8, 8)):
    """All arguments of one evaluation, by name."""
    inputs = {
        "sample": noise(batch, 4, *size, seed=seed),
        "timestep": torch.tensor(700 - 100 * seed),
        "encoder_hidden_states": noise(batch, TOKENS, WIDTH, seed=20),
        "encoder_attention_mask": torch.ones(batch, TOKENS).index_fill_(1, torch.tensor([TOKENS - 1]), 0),
    }
    config = unet.config
    if config.num_class_embeds:
        inputs["class_labels"] = torch.arange(batch) % 3
    if config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {
            "text_embeds": noise(batch, 7, seed=21),
            "time_ids": 9 * noise(batch, 6, seed=22),
        }
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = noise(batch, config.time_cond_proj_dim, seed=23)
    return inputs


@torch.no_grad()
def plain(unet, **inputs):
    return UNet2DConditionModel.forward(unet, **inputs).sample


@torch.no_grad()
def by_hand(unet, branch, feature=None, **inputs):
    """One evaluation layer by layer: the output, and the main input of the ResNet that consumes entry `branch`.

    feature: None for a full evaluation; else encoder entries 0..branch and the last branch + 1 decoder ResNets run.
    """
    given = {"embedding": embed(unet, **inputs), "text": inputs["encoder_hidden_states"]}
    given |= {name: bias(inputs.get(name)) for name in ("attention_mask", "encoder_attention_mask")}
    down = [layer for block in unet.down_blocks for layer in down_layers(block)]
    up = [layer for block in unet.up_blocks for layer in up_layers(block)]
    entries = [unet.conv_in(inputs["sample"])]
    for layer in down if feature is None else down[:branch]:
        entries.append(layer(entries[-1], given))
    hidden = feature
    if feature is None:
        hidden = entries[-1] if unet.mid_block is None else middle(unet.mid_block, entries[-1], given)
        if "mid_block_additional_residual" in inputs:
            hidden = hidden + inputs["mid_block_additional_residual"]
    residuals = inputs.get("down_block_additional_residuals", ())
    entries[: len(residuals)] = [entry + r for entry, r in zip(entries, residuals, strict=False)]
    main = feature
    for layer in up if feature is None else up[-1 - branch :]:
        skip = entries.pop()
        if len(entries) == branch:
            main = hidden
        hidden = layer(torch.cat([hidden, skip], 1), given, entries[-1].shape[2:] if entries else None)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden))), main


def embed(unet, sample, timestep, timestep_cond=None, class_labels=None, added_cond_kwargs=None, **others):
    embedding = unet.time_embedding(unet.time_proj(timestep.expand(len(sample))), timestep_cond)
    if class_labels is not None:
        embedding = torch.cat([embedding, unet.class_embedding(class_labels)], 1)
    if added_cond_kwargs is not None:
        times = unet.add_time_proj(added_cond_kwargs["time_ids"].flatten()).reshape(len(sample), -1)
        embedding = embedding + unet.add_embedding(torch.cat([added_cond_kwargs["text_embeds"], times], 1))
    return embedding


def bias(mask):
    return None if mask is None else ((1 - mask) * -10000.0).unsqueeze(1)


def middle(block, hidden, given):
    hidden = block.resnets[0](hidden, given["embedding"])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        hidden = resnet(attend(block, attention, hidden, given), given["embedding"])
    return hidden


def down_layers(block):
    for i, resnet in enumerate(block.resnets):
        yield lambda hidden, given, i=i, resnet=resnet: refine(block, i, resnet, hidden, given)
    if block.downsamplers is not None:
        yield lambda hidden, given: resample(block, block.downsamplers[0], hidden, given)


def up_layers(block):
    for i, resnet in enumerate(block.resnets):

        def layer(hidden, given, size, i=i, resnet=resnet):
            hidden = refine(block, i, resnet, hidden, given)
            if block.upsamplers is None or i < len(block.resnets) - 1:
                return hidden
            return resample(block, block.upsamplers[0], hidden, given, size)

        yield layer


def refine(block, i, resnet, hidden, given):
    hidden = resnet(hidden, given["embedding"])
    return attend(block, block.attentions[i], hidden, given) if hasattr(block, "attentions") else hidden


def attend(block, attention, hidden, given):
    kind = type(block).__name__
    if "SimpleCross" in kind:
        mask = given["encoder_attention_mask"] if given["attention_mask"] is None else given["attention_mask"]
        return attention(hidden, encoder_hidden_states=given["text"], attention_mask=mask)
    if "CrossAttn" in kind:
        (output,) = attention(
            hidden,
            encoder_hidden_states=given["text"],
            encoder_attention_mask=given["encoder_attention_mask"],
            return_dict=False,
        )
        return output
    return attention(hidden) if kind.startswith("Attn") else attention(hidden, temb=given["embedding"])


def resample(block, sampler, hidden, given, size=None):
    kind = type(block).__name__
    if kind.startswith(("Resnet", "Simple")):
        return sampler(hidden, given["embedding"])
    return sampler(hidden, size) if kind in ("UpBlock2D", "CrossAttnUpBlock2D") else sampler(hidden)
