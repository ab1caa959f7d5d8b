"""The first stages of CompVis latent diffusion, from their published layout, as an independent reference."""

import torch
from torch import nn
from torch.nn import functional


class FirstStage(nn.Module):
    """num_codes: of the codebook (VQ); None for a Gaussian latent (KL), whose encoder gives two moments."""

    def __init__(self, width, mult, num_res_blocks, latent_channels, num_codes=None, groups=32):
        super().__init__()
        moments = latent_channels if num_codes else 2 * latent_channels
        self.encoder = Encoder(width, mult, num_res_blocks, moments, groups)
        self.decoder = Decoder(width, mult, num_res_blocks, latent_channels, groups)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        if num_codes:
            self.quantize = nn.Module()
            self.quantize.embedding = nn.Embedding(num_codes, latent_channels)

    def encode(self, images):
        """The latents (VQ) or the two moments (KL)."""
        return self.quant_conv(self.encoder(images))

    def decode(self, latents):
        if hasattr(self, "quantize"):
            codes = self.quantize.embedding.weight
            distances = (latents.movedim(1, -1)[..., None, :] - codes).square().sum(-1)
            latents = codes[distances.argmin(-1)].movedim(-1, 1)
        return self.decoder(self.post_quant_conv(latents))


class Encoder(nn.Module):
    def __init__(self, width, mult, num_res_blocks, moments, groups):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        channels = width
        for level, factor in enumerate(mult):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(num_res_blocks):
                stage.block.append(ResnetBlock(channels, factor * width, groups))
                channels = factor * width
            if level < len(mult) - 1:
                stage.downsample = nn.Module()
                stage.downsample.conv = nn.Conv2d(channels, channels, 3, stride=2)
            self.down.append(stage)
        self.mid = middle(channels, groups)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, moments, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                x = block(x)
            if hasattr(stage, "downsample"):
                x = stage.downsample.conv(functional.pad(x, (0, 1, 0, 1)))
        x = run_middle(self.mid, x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, width, mult, num_res_blocks, latent_channels, groups):
        super().__init__()
        channels = mult[-1] * width
        self.conv_in = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.mid = middle(channels, groups)
        stages = []
        for level in reversed(range(len(mult))):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                stage.block.append(ResnetBlock(channels, mult[level] * width, groups))
                channels = mult[level] * width
            if level:
                stage.upsample = nn.Module()
                stage.upsample.conv = nn.Conv2d(channels, channels, 3, padding=1)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z):
        x = run_middle(self.mid, self.conv_in(z))
        for stage in reversed(self.up):
            for block in stage.block:
                x = block(x)
            if hasattr(stage, "upsample"):
                x = stage.upsample.conv(functional.interpolate(x, scale_factor=2))
        return self.conv_out(functional.silu(self.norm_out(x)))


class ResnetBlock(nn.Module):
    def __init__(self, before, after, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, after, eps=1e-6)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, -1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view(x.shape))


def middle(channels, groups):
    stage = nn.Module()
    stage.block_1 = ResnetBlock(channels, channels, groups)
    stage.attn_1 = AttnBlock(channels, groups)
    stage.block_2 = ResnetBlock(channels, channels, groups)
    return stage


def run_middle(stage, x):
    return stage.block_2(stage.attn_1(stage.block_1(x)))
