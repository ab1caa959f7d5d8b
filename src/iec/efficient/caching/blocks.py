"""A UNet's blocks cut at an encoder entry, which is all that DeepCache does to a UNet.

Entry s is the s-th of diffusers' `down_block_res_samples` (0: the input convolution); the s+1-th ResNet from the end of
the decoder consumes it. A part of a block is a copy that shares its layers but has fewer of them, so every evaluation
goes through the blocks' own `forward`, whatever they do with text, masks or sizes.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

SUPPORTED_BLOCKS = frozenset(
    {
        "DownBlock2D",
        "AttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "ResnetDownsampleBlock2D",
        "UpBlock2D",
        "AttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "SimpleCrossAttnUpBlock2D",
        "ResnetUpsampleBlock2D",
    }
)


def require_supported(unet: Any) -> None:
    """Raise ValueError, naming the block, where the UNet or a block of it cannot be cut."""
    _require_own_forward(unet)
    for block in [*unet.down_blocks, *unet.up_blocks]:
        name = type(block).__name__
        if name not in SUPPORTED_BLOCKS:
            raise ValueError(f"DeepCache cannot cut a {name}: it knows {', '.join(sorted(SUPPORTED_BLOCKS))}.")
        _require_own_forward(block)


def count_entries(unet: Any) -> int:
    """The number of encoder entries, and of the decoder's ResNets."""
    return sum(len(block.resnets) for block in unet.up_blocks)


def encoder_until(unet: Any, branch: int) -> list[Any]:
    """The blocks that make entries 1 to `branch` of entry 0, the last of them perhaps a part."""
    blocks: list[Any] = []
    missing = branch
    for block in unet.down_blocks:
        entries = len(block.resnets) + bool(block.downsamplers)
        if missing < entries:
            return [*blocks, _part(block, 0, missing, resampled=False)] if missing else blocks
        blocks.append(block)
        missing -= entries
    return blocks


def decoder_at(unet: Any, branch: int, take: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[Any], list[Any]]:
    """The decoder before and from the ResNet that consumes entry `branch`.

    take: what becomes of the main input [B, C, H, W] of that ResNet, before the concatenation.
    """
    missing = branch + 1
    before = list(unet.up_blocks)
    after: list[Any] = []
    while missing > len(before[-1].resnets):
        missing -= len(before[-1].resnets)
        after.insert(0, before.pop())
    block = before.pop()
    first = len(block.resnets) - missing
    if first:
        before.append(_part(block, 0, first, resampled=False))
    entry = _part(block, first, len(block.resnets), resampled=True)

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        main = take(hidden_states)
        if getattr(entry, "b1", None) is not None:
            main = main.clone()  # FreeU writes into its input, which the cache keeps
        output: torch.Tensor = type(entry).forward(entry, main, *args, **kwargs)
        return output

    entry.forward = forward
    return before, [entry, *after]


def _part(block: Any, start: int, stop: int, resampled: bool) -> Any:
    """`block` with its ResNets and attentions from `start` to `stop` alone, and its resampler where `resampled`."""
    _require_own_forward(block)
    part = copy.copy(block)
    part._modules = dict(block._modules)
    for name in {"resnets", "attentions"} & part._modules.keys():
        setattr(part, name, getattr(block, name)[start:stop])
    for name in {"downsamplers", "upsamplers"} & part._modules.keys():
        if not resampled:
            setattr(part, name, None)
    return part


def _require_own_forward(module: Any) -> None:
    # An instance's forward is bound to the whole module and would run it, whatever the copy has left.
    if "forward" in vars(module):
        raise ValueError(
            f"The forward of this {type(module).__name__} is replaced, as offloading does, so DeepCache cannot change "
            "what it computes: apply DeepCache to a model without offloading."
        )
