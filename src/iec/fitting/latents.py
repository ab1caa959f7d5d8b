"""How the states of a pipeline are laid out: which axis is that of the channels, and where they are images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iec.pipelines.deployment import denoisers

#: Images smaller than this have no bands worth telling apart.
_SMALLEST = 8


@dataclass(frozen=True)
class Latents:
    """channel_axis: of a state [B, ...]. grid: rows and columns of packed tokens. banded: whether it is an image."""

    channel_axis: int
    grid: tuple[int, int] | None
    banded: bool


def latents_of(pipe: Any, shape: Sequence[int], arguments: Mapping[str, Any]) -> Latents:
    """The layout of states of this shape [B, ...]; arguments: of the pipeline's call."""
    axis = _channel_axis(pipe, shape)
    if len(shape) == 4 and axis == 1:
        return Latents(axis, None, min(shape[2:]) >= _SMALLEST)
    packed = len(shape) == 3 and axis == 2 and shape[2] % 4 == 0 and hasattr(pipe, "_pack_latents")
    grid = _grid(pipe, shape[1], arguments) if packed else None
    return Latents(axis, grid, grid is not None and 2 * min(grid) >= _SMALLEST)


def _channel_axis(pipe: Any, shape: Sequence[int]) -> int:
    """The first likely axis whose length is a number of channels that a network takes or makes."""
    configs = [getattr(network, "config", {}) for network in denoisers(pipe).values()]
    channels = {config.get(name) for config in configs for name in ("in_channels", "out_channels")}
    likely = (len(shape) - 1, 1) if len(shape) == 3 else (1, 2, len(shape) - 1)
    return next((axis for axis in likely if axis < len(shape) and shape[axis] in channels), likely[0])


def _grid(pipe: Any, tokens: int, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    factor = 2 * int(getattr(pipe, "vae_scale_factor", 8) or 8)
    side = math.isqrt(tokens)
    height, width = arguments.get("height"), arguments.get("width")
    grid = (side, side) if height is None or width is None else (int(height) // factor, int(width) // factor)
    return grid if grid[0] * grid[1] == tokens else None
