"""The UNet of CompVis latent diffusion, written from its published layout, as an independent reference.

Its module names are those of a checkpoint: input_blocks, middle_block, output_blocks, in_layers, emb_layers, ...
"""

import math

import torch
from torch import nn
from torch.nn import functional


class UNet(nn.Module):
    """Settings as in CompVis's configuration files; `attention` lists downsampling factors."""

    def __init__(
        self,
        in_channels,
        out_channels,
        model_channels,
        channel_mult,
        num_res_blocks,
        attention,
        num_heads=None,
        num_head_channels=None,
        scale_shift=False,
        resblock_updown=False,
        context_dim=None,
        groups=32,
    ):
        super().__init__()
        self.width = model_channels
        emb = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))

        def heads(channels):
            return num_heads or channels // num_head_channels

        def res(before, after, **resampled):
            return ResBlock(before, after, emb, scale_shift, groups, **resampled)

        def attend(channels):
            if context_dim is None:
                return AttentionBlock(channels, heads(channels), groups)
            return SpatialTransformer(channels, heads(channels), context_dim, groups)

        blocks = [Block(nn.Conv2d(in_channels, model_channels, 3, padding=1))]
        skips, channels, factor = [model_channels], model_channels, 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = [res(channels, mult * model_channels)]
                channels = mult * model_channels
                blocks.append(Block(*layers, *([attend(channels)] if factor in attention else [])))
                skips.append(channels)
            if level < len(channel_mult) - 1:
                down = res(channels, channels, down=True) if resblock_updown else Downsample(channels)
                blocks.append(Block(down))
                skips.append(channels)
                factor *= 2
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = Block(res(channels, channels), attend(channels), res(channels, channels))
        blocks = []
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [res(channels + skips.pop(), mult * model_channels)]
                channels = mult * model_channels
                layers += [attend(channels)] if factor in attention else []
                if level and i == num_res_blocks:
                    layers.append(res(channels, channels, up=True) if resblock_updown else Upsample(channels))
                    factor //= 2
                blocks.append(Block(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )

    def forward(self, x, t, context=None):
        frequencies = torch.exp(-math.log(10000) * torch.arange(self.width // 2) / (self.width // 2))
        angles = t[:, None].float() * frequencies
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), emb, context)
        return self.out(x)


class Block(nn.Sequential):
    def forward(self, x, emb, context):
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            else:
                x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, before, after, emb, scale_shift, groups, up=False, down=False):
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = nn.Identity()
        if up or down:
            self.resample = nn.Upsample(scale_factor=2) if up else nn.AvgPool2d(2)
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * after if scale_shift else after))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, after), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(after, after, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x, emb):
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """The `legacy` order of CompVis: the heads of a fused projection come first, then q, k, v."""

    def __init__(self, channels, heads, groups):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        batch, channels, *size = x.shape
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat)).view(batch * self.heads, 3 * channels // self.heads, -1)
        q, k, v = qkv.chunk(3, 1)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1]), -1)
        h = torch.einsum("bts,bcs->bct", weights, v).reshape(batch, channels, -1)
        return (flat + self.proj_out(h)).view(batch, channels, *size)


class SpatialTransformer(nn.Module):
    def __init__(self, channels, heads, context_dim, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x, context):
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))


class TransformerBlock(nn.Module):
    def __init__(self, channels, heads, context_dim):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_dim, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x, context):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class CrossAttention(nn.Module):
    def __init__(self, channels, context_dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.0))

    def forward(self, x, context):
        def per_head(tokens):
            return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = per_head(self.to_q(x)), per_head(self.to_k(context)), per_head(self.to_v(context))
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, channels):
        super().__init__()
        gate = nn.Module()
        gate.proj = nn.Linear(channels, 8 * channels)
        self.net = nn.Sequential(gate, nn.Dropout(0.0), nn.Linear(4 * channels, channels))

    def forward(self, x):
        value, gate = self.net[0].proj(x).chunk(2, -1)
        return self.net[2](value * functional.gelu(gate))


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2))
