"""How states are laid out, told from the networks' numbers of channels."""

from types import SimpleNamespace

import pytest
from torch import nn

from iec.fitting.latents import Latents, latents_of


class Denoiser(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.config = {"in_channels": channels, "out_channels": channels}


def pipe_of(channels, **attributes):
    return SimpleNamespace(components={"transformer": Denoiser(channels), "vae": nn.Module()}, **attributes)


PACKING = {"_pack_latents": None, "vae_scale_factor": 8}
SIZE = {"height": 64, "width": 128}


@pytest.mark.parametrize(
    ("pipe", "shape", "arguments", "expected"),
    [
        (pipe_of(3), (2, 3, 32, 32), {}, Latents(1, None, True)),
        (pipe_of(3), (2, 3, 6, 32), {}, Latents(1, None, False)),
        (pipe_of(4), (2, 4, 5, 8, 8), {}, Latents(1, None, False)),  # a video, channels first
        (pipe_of(4), (2, 5, 4, 8, 8), {}, Latents(2, None, False)),  # a video, frames first
        (pipe_of(64, **PACKING), (2, 32, 64), SIZE, Latents(2, (4, 8), True)),
        (pipe_of(64, **PACKING), (2, 16, 64), {"height": None, "width": None}, Latents(2, (4, 4), True)),
        (pipe_of(64, **PACKING), (2, 4, 64), {}, Latents(2, (2, 2), False)),  # an image of 4 x 4
        (pipe_of(64, **PACKING), (2, 15, 64), {}, Latents(2, None, False)),  # tokens of no known image
        (pipe_of(64), (2, 16, 64), {}, Latents(2, None, False)),  # nothing says that tokens are pixels
        (pipe_of(64), (2, 64, 100), {}, Latents(1, None, False)),  # sound
    ],
)
def test_the_layout_of_a_state(pipe, shape, arguments, expected):
    assert latents_of(pipe, shape, arguments) == expected
