"""The layers that consume the cached feature first, and what they are given of it (spec 3.3)."""

from collections.abc import Callable
from typing import Any

import torch

from iec.efficient.cachequant.dec import normalized_main
from iec.efficient.quantization.coverage import concatenation_splits

#: What a layer is given of the main branch, from the feature [B, C, H, W].
MainInput = Callable[[torch.Tensor], torch.Tensor]


def reentry_layers(unet: Any, branch: int) -> dict[str, MainInput]:
    """The re-entry ResNet's shortcut and, where its norm does not mix the branches, its first convolution, by name."""
    name, resnet = reentry_resnet(unet, branch)
    layers: dict[str, MainInput] = {}
    if resnet.conv_shortcut is not None:
        layers[f"{name}.conv_shortcut"] = lambda feature: feature
    norm = resnet.norm1
    if concatenation_splits(unet)[resnet.conv1] % (norm.num_channels // norm.num_groups) == 0:
        layers[f"{name}.conv1"] = lambda feature: resnet.nonlinearity(normalized_main(norm, feature))
    return layers


def reentry_resnet(unet: Any, branch: int) -> tuple[str, Any]:
    """The ResNet where cached steps re-enter, whose input is [cached feature, encoder entry], with its name."""
    resnets = [
        (f"up_blocks.{b}.resnets.{r}", resnet)
        for b, block in enumerate(unet.up_blocks)
        for r, resnet in enumerate(block.resnets)
    ]
    return resnets[-1 - branch]
