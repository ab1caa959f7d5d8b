"""A UNet as a row of encoder entries and a row of decoder layers, which DeepCache walks.

Entry s is the s-th of diffusers' `down_block_res_samples` (0: the input convolution). Decoder layer j consumes entry
n-1-j: its ResNet on the concatenation, its attention, and the upsampler that follows. The walk makes exactly the
calls that the blocks' own `forward` makes, in the same order.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

EncoderLayer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
DecoderLayer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

SUPPORTED_BLOCKS = frozenset(
    {
        "DownBlock2D",
        "AttnDownBlock2D",
        "ResnetDownsampleBlock2D",
        "UpBlock2D",
        "AttnUpBlock2D",
        "ResnetUpsampleBlock2D",
    }
)


def require_supported(unet: nn.Module) -> None:
    """Raise ValueError, naming the block, where a block does more than the walk knows of."""
    for block in [*unet.down_blocks, *unet.up_blocks]:  # type: ignore[misc]
        name = type(block).__name__
        if name not in SUPPORTED_BLOCKS:
            raise ValueError(f"DeepCache cannot walk a {name}: it knows {', '.join(sorted(SUPPORTED_BLOCKS))}.")


def count_entries(unet: nn.Module) -> int:
    """The number of encoder entries, and of decoder layers."""
    return 1 + sum(1 for _ in encoder_layers(unet))


def encoder_layers(unet: nn.Module) -> Iterator[EncoderLayer]:
    """The layers that make entries 1, 2, ... of entry 0; each is (hidden, time embedding) -> hidden."""
    for block in unet.down_blocks:  # type: ignore[union-attr]
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            yield _resnet_and_attention(resnet, attention)
        for sampler in block.downsamplers or ():  # type: ignore[union-attr, operator]
            yield _resampler(block, sampler, "downsample_type")


def decoder_layers(unet: nn.Module) -> Iterator[DecoderLayer]:
    """The layers after the middle block; each is (hidden, skip, time embedding) -> hidden."""
    for block in unet.up_blocks:  # type: ignore[union-attr]
        samplers = [_resampler(block, sampler, "upsample_type") for sampler in block.upsamplers or ()]  # type: ignore
        pairs = list(zip(block.resnets, _attentions(block), strict=True))
        for i, (resnet, attention) in enumerate(pairs):
            after = samplers if i == len(pairs) - 1 else []
            yield _concatenated(_resnet_and_attention(resnet, attention), after)


def _attentions(block: nn.Module) -> list[nn.Module | None]:
    return list(getattr(block, "attentions", [None] * len(block.resnets)))  # type: ignore[arg-type]


def _resnet_and_attention(resnet: nn.Module, attention: nn.Module | None) -> EncoderLayer:
    def layer(hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        hidden = resnet(hidden, embedding)
        return hidden if attention is None else attention(hidden)

    return layer


def _resampler(block: nn.Module, sampler: nn.Module, kind: str) -> EncoderLayer:
    takes_embedding = getattr(block, kind, None) == "resnet" or type(block).__name__.startswith("Resnet")
    if takes_embedding:
        return lambda hidden, embedding: sampler(hidden, embedding)
    return lambda hidden, embedding: sampler(hidden)


def _concatenated(layer: EncoderLayer, after: list[EncoderLayer]) -> DecoderLayer:
    def concatenated(hidden: torch.Tensor, skip: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        hidden = layer(torch.cat([hidden, skip], dim=1), embedding)
        for sampler in after:
            hidden = sampler(hidden, embedding)
        return hidden

    return concatenated
