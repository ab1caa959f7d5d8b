"""The UNet of CompVis latent diffusion as a `UNet2DModel` or a `UNet2DConditionModel`.

CompVis numbers its blocks through all levels (input_blocks.4), diffusers within a level (down_blocks.1.resnets.0).
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from iec.models.component import Component
from iec.models.compvis.rules import LAYER, Rule, Shapes, Table, convert, rules_of, same_names

_RESNET: Table = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION: Table = {"norm": "group_norm", "qkv": ("to_q", "to_k", "to_v"), "proj_out": "to_out.0"}
_DOWNSAMPLER: Table = {"op": "conv"}
_UPSAMPLER: Table = {"conv": "conv"}
_OUTSIDE: tuple[tuple[str, str, Table], ...] = (
    ("time_embed.0", "time_embedding.linear_1", LAYER),
    ("time_embed.2", "time_embedding.linear_2", LAYER),
    ("out.0", "conv_norm_out", LAYER),
    ("out.2", "conv_out", LAYER),
)


def convert_unet(
    state_dict: Mapping[str, torch.Tensor], config: Component, what: str = "this UNet"
) -> dict[str, torch.Tensor]:
    """A CompVis UNet's weights (input_blocks.*, middle_block.*, output_blocks.*, ...) under the names of `config`.

    Every source tensor is used exactly once, every target tensor is filled exactly once. what: its name, for errors.
    Raises ValueError, in one sentence that names them, for missing, unexpected or misshapen tensors.
    """
    shapes = config.shapes()
    return convert(state_dict, unet_rules(config, shapes), shapes, what)


def unet_rules(config: Component, shapes: Shapes) -> list[Rule]:
    """One rule for each tensor of a CompVis UNet that has the layers of `config`."""
    modules = [(source, target, _table(target, shapes)) for source, target in _blocks(config, shapes)]
    return list(rules_of([*_OUTSIDE, *modules], shapes, _heads(config)))


def _blocks(config: Component, shapes: Shapes) -> Iterator[tuple[str, str]]:
    """The modules of both networks, (CompVis, diffusers); what this one lacks is not numbered."""
    levels = range(len(config.settings["block_out_channels"]))
    layers = config.settings["layers_per_block"]
    down, up = [["conv_in"]], []
    for level in levels:
        block = f"down_blocks.{level}"
        down += [[f"{block}.resnets.{i}", f"{block}.attentions.{i}"] for i in range(layers)]
        down.append([f"{block}.downsamplers.0"])
        block = f"up_blocks.{level}"
        up += [[f"{block}.resnets.{i}", f"{block}.attentions.{i}"] for i in range(layers + 1)]
        up[-1].append(f"{block}.upsamplers.0")
    middle = ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]
    yield from _numbered("middle_block", _present(middle, shapes))
    for side, groups in (("input_blocks", down), ("output_blocks", up)):
        present = filter(None, (_present(group, shapes) for group in groups))
        for number, group in enumerate(present):
            yield from _numbered(f"{side}.{number}", group)


def _numbered(side: str, modules: list[str]) -> Iterator[tuple[str, str]]:
    return ((f"{side}.{place}", module) for place, module in enumerate(modules))


def _present(modules: list[str], shapes: Shapes) -> list[str]:
    return [module for module in modules if any(name.startswith(f"{module}.") for name in shapes)]


def _table(target: str, shapes: Shapes) -> Table:
    """The layers of a module, whose kind shows in what it holds."""
    if f"{target}.weight" in shapes:
        return LAYER
    if f"{target}.conv1.weight" in shapes:  # also of a sampler that is a ResNet
        return _RESNET
    if f"{target}.to_q.weight" in shapes:
        return _ATTENTION
    if f"{target}.proj_in.weight" in shapes:  # a spatial transformer
        return same_names(target, shapes)
    return _DOWNSAMPLER if "downsamplers" in target else _UPSAMPLER


def _heads(config: Component) -> Callable[[int], int]:
    """The number of attention heads of a `UNet2DModel`, or of ours, by their channels."""
    fixed, width = config.settings.get("num_attention_heads"), config.settings.get("attention_head_dim", 8)
    return lambda channels: fixed or (1 if width is None else channels // width)
