"""DeepCache (Ma et al., 2024) on diffusers' `UNet2DModel`.

A full step stores the decoder's main feature where branch s re-enters; a cached step runs encoder entries 0..s and
the last s+1 decoder layers on the stored feature, and skips everything between. The feature lives in the run's clock,
so the model itself holds nothing but its settings.
"""

import copy
import functools
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from iec.efficient.caching.config import CacheSettings
from iec.efficient.caching.layers import count_entries, decoder_layers, encoder_layers, require_supported
from iec.method.clock import current_clock

#: What becomes of a stored feature before it is used: (feature, step) -> feature.
Correct = Callable[[torch.Tensor, int], torch.Tensor]


def require_cacheable(module: Any, config: CacheSettings) -> None:
    """Raise TypeError or ValueError, in one sentence, unless `module` can be cached with `config`."""
    if not isinstance(module, UNet2DModel):
        raise TypeError(f"DeepCache needs a UNet2DModel, but the denoiser is a {type(module).__name__}.")
    require_supported(module)
    entries, branch = count_entries(module), branch_of(module, config)
    if branch >= entries:
        raise ValueError(f"Branch {branch} does not exist: this UNet has branches 0 to {entries - 1}.")


def branch_of(module: Any, config: CacheSettings) -> int:
    """The branch of `config`, by default the entry of the first downsampler."""
    return int(module.config.layers_per_block) + 1 if config.branch is None else config.branch


def cached_class(base: type[Any], config: CacheSettings, correct: Correct | None = None) -> type[Any]:
    """A subclass of `base`, of the same name, whose evaluations follow the cache; cached steps use `correct`."""

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        clock = current_clock()
        if self in clock.evaluated:
            raise RuntimeError(
                "This cached model was evaluated twice in one step, and it keeps one feature: "
                "evaluate the guidance's two halves in one batch, or remove the cache."
            )
        clock.evaluated.add(self)
        full_steps = config.full_steps(clock.num_steps)
        full = clock.cache_policy == "full" or clock.step in full_steps
        used = correct or _unchanged
        walked = _walked(self, branch_of(self, config), full, clock.storage, lambda x: used(x, clock.step))
        output = base.forward(walked, *args, **kwargs)
        clock.record(full)
        return output

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), {**names, "forward": forward})


def _unchanged(feature: torch.Tensor, step: int) -> torch.Tensor:
    return feature


def _walked(
    unet: Any,
    branch: int,
    full: bool,
    features: dict[Any, torch.Tensor],
    correct: Callable[[torch.Tensor], torch.Tensor],
) -> Any:
    """`unet` with its blocks replaced by the walk of one evaluation; all its other layers stay as they are."""
    view = copy.copy(unet)
    encoder = _Encoder(unet, None if full else branch)
    decoder = _Decoder(unet, branch, full, features, correct)
    blocks = {"down_blocks": nn.ModuleList([encoder]), "mid_block": None, "up_blocks": nn.ModuleList([decoder])}
    view._modules = {**unet._modules, **blocks}
    return view


class _Block(nn.Module):
    """Stands for a row of blocks in one evaluation, without owning any of their layers."""

    unet: Any

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.__dict__["unet"] = unet  # past nn.Module, which would register it as a child


class _Encoder(_Block):
    """Entries 1, 2, ... up to `last` (None: all of them)."""

    def __init__(self, unet: Any, last: int | None) -> None:
        super().__init__(unet)
        self.last = last

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        hidden, entries = hidden_states, []
        for layer in islice(encoder_layers(self.unet), self.last):
            hidden = layer(hidden, temb)
            entries.append(hidden)
        return hidden, tuple(entries)


class _Decoder(_Block):
    """The middle block and the decoder layers: all of them where `full`, else those from the stored feature on."""

    def __init__(
        self,
        unet: Any,
        branch: int,
        full: bool,
        features: dict[Any, torch.Tensor],
        correct: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__(unet)
        self.branch, self.full, self.features, self.correct = branch, full, features, correct
        # diffusers hands over as many encoder entries as the block has ResNets.
        self.resnets = [None] * (count_entries(unet) if full else branch + 1)

    def forward(
        self, hidden_states: torch.Tensor, entries: tuple[torch.Tensor, ...], temb: torch.Tensor
    ) -> torch.Tensor:
        layers = list(decoder_layers(self.unet))
        entry_layer = len(layers) - 1 - self.branch
        if not self.full:
            if self.unet not in self.features:
                raise RuntimeError("A cached step came before any full one: begin the run with step 0.")
            hidden, first = self.correct(self.features[self.unet]), entry_layer
        elif self.unet.mid_block is None:
            hidden, first = hidden_states, 0
        else:
            hidden, first = self.unet.mid_block(hidden_states, temb), 0
        for j, (layer, skip) in enumerate(zip(layers[first:], reversed(entries), strict=True), first):
            if self.full and j == entry_layer:
                self.features[self.unet] = hidden
            hidden = layer(hidden, skip, temb)
        return hidden
