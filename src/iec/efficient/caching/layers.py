"""A UNet as a row of encoder entries and a row of decoder layers, which DeepCache walks.

Entry s is the s-th of diffusers' `down_block_res_samples` (0: the input convolution). Decoder layer j consumes entry
n-1-j: its ResNet on the concatenation, its attention, and the upsampler that follows. The walk makes exactly the
calls that the blocks' own `forward` makes, in the same order.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

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


def require_supported(unet: Any) -> None:
    """Raise ValueError, naming the block, where a block does more than the walk knows of."""
    for block in [*unet.down_blocks, *unet.up_blocks]:
        name = type(block).__name__
        if name not in SUPPORTED_BLOCKS:
            raise ValueError(f"DeepCache cannot walk a {name}: it knows {', '.join(sorted(SUPPORTED_BLOCKS))}.")


def count_entries(unet: Any) -> int:
    """The number of encoder entries, and of decoder layers."""
    return 1 + sum(1 for _ in encoder_layers(unet))


def encoder_layers(unet: Any) -> Iterator[EncoderLayer]:
    """The layers that make entries 1, 2, ... of entry 0; each is (hidden, time embedding) -> hidden."""
    for block in unet.down_blocks:
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            yield _resnet_and_attention(resnet, attention)
        for sampler in block.downsamplers or ():
            yield _resampler(block, sampler, "downsample_type")


def decoder_layers(unet: Any) -> Iterator[DecoderLayer]:
    """The layers after the middle block; each is (hidden, skip, time embedding) -> hidden."""
    for block in unet.up_blocks:
        samplers = [_resampler(block, sampler, "upsample_type") for sampler in block.upsamplers or ()]
        pairs = list(zip(block.resnets, _attentions(block), strict=True))
        for i, (resnet, attention) in enumerate(pairs):
            after = samplers if i == len(pairs) - 1 else []
            yield _concatenated(_resnet_and_attention(resnet, attention), after)


def _attentions(block: Any) -> list[Any]:
    return list(getattr(block, "attentions", [None] * len(block.resnets)))


def _resnet_and_attention(resnet: Any, attention: Any) -> EncoderLayer:
    def layer(hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        refined: torch.Tensor = resnet(hidden, embedding)
        return refined if attention is None else attention(refined)

    return layer


def _resampler(block: Any, sampler: Any, kind: str) -> EncoderLayer:
    takes_embedding = getattr(block, kind, None) == "resnet" or type(block).__name__.startswith("Resnet")

    def layer(hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        resampled: torch.Tensor = sampler(hidden, embedding) if takes_embedding else sampler(hidden)
        return resampled

    return layer


def _concatenated(layer: EncoderLayer, after: list[EncoderLayer]) -> DecoderLayer:
    def concatenated(hidden: torch.Tensor, skip: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        hidden = layer(torch.cat([hidden, skip], dim=1), embedding)
        for sampler in after:
            hidden = sampler(hidden, embedding)
        return hidden

    return concatenated
