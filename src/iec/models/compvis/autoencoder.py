"""The first stages of CompVis latent diffusion, with a codebook (VQ) or a Gaussian (KL), as diffusers' autoencoders."""

from collections.abc import Iterator, Mapping

import torch

from iec.models.component import Component
from iec.models.compvis.rules import LAYER, Rule, Shapes, Table, convert, rules_of

_RESNET: Table = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_ATTENTION: Table = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_SHARED = ("quant_conv", "post_quant_conv", "quantize.embedding")
_HALF: Table = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
_MIDDLE: tuple[tuple[str, str, Table], ...] = (
    ("block_1", "resnets.0", _RESNET),
    ("attn_1", "attentions.0", _ATTENTION),
    ("block_2", "resnets.1", _RESNET),
)


def convert_autoencoder(
    state_dict: Mapping[str, torch.Tensor], config: Component, what: str = "this autoencoder"
) -> dict[str, torch.Tensor]:
    """A CompVis first stage's weights (encoder.*, decoder.*, quantize.*, ...) under the names of `config`.

    Every source tensor is used exactly once, every target tensor is filled exactly once. what: its name, for errors.
    Raises ValueError, in one sentence that names them, for missing, unexpected or misshapen tensors.
    """
    shapes = config.shapes()
    return convert(state_dict, autoencoder_rules(config, shapes), shapes, what)


def autoencoder_rules(config: Component, shapes: Shapes) -> list[Rule]:
    """One rule for each tensor of a CompVis first stage that has the layers of `config`."""
    return list(rules_of(_modules(config), shapes))


def _modules(config: Component) -> Iterator[tuple[str, str, Table]]:
    levels = len(config.settings["block_out_channels"])
    layers = config.settings["layers_per_block"]
    yield from ((name, name, LAYER) for name in _SHARED)
    for half in ("encoder", "decoder"):
        yield half, half, _HALF
        for source, target, table in _MIDDLE:
            yield f"{half}.mid.{source}", f"{half}.mid_block.{target}", table
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"  # CompVis numbers both by resolution
        for i in range(layers):
            yield f"{down}.block.{i}", f"encoder.down_blocks.{level}.resnets.{i}", _RESNET
        for i in range(layers + 1):
            yield f"{up}.block.{i}", f"decoder.up_blocks.{level}.resnets.{i}", _RESNET
        yield f"{down}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv", LAYER
        yield f"{up}.upsample.conv", f"decoder.up_blocks.{level}.upsamplers.0.conv", LAYER
