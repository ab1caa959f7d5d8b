"""DeepCache (Ma et al., 2024) on diffusers' `UNet2DModel` and `UNet2DConditionModel`.

A full step stores the decoder's main feature where branch s re-enters; a cached step runs encoder entries 0..s and
the last s+1 decoder ResNets on the stored feature, and skips everything between. The feature lives in the run's clock,
so the model itself holds nothing but its settings.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from iec.efficient.caching.blocks import count_entries, decoder_at, encoder_until, require_supported
from iec.efficient.caching.config import CacheSettings
from iec.efficient.caching.memory import LATEST, Memory
from iec.method.clock import current_clock
from iec.runtime import subclass

#: What becomes of a stored feature before it is used: (feature, step) -> feature.
Correct = Callable[[torch.Tensor, int], torch.Tensor]


def require_cacheable(module: Any, config: CacheSettings) -> None:
    """Raise TypeError or ValueError, in one sentence, unless `module` can be cached with `config`."""
    if not isinstance(module, (UNet2DModel, UNet2DConditionModel)):
        raise TypeError(
            f"DeepCache needs a UNet2DModel or UNet2DConditionModel, but the denoiser is a {type(module).__name__}."
        )
    require_supported(module)
    entries, branch = count_entries(module), branch_of(module, config)
    if branch >= entries:
        raise ValueError(f"Branch {branch} does not exist: this UNet has branches 0 to {entries - 1}.")


def branch_of(module: Any, config: CacheSettings) -> int:
    """The branch of `config`; by default 1 for a conditional UNet, else the entry of the first downsampler."""
    if config.branch is not None:
        return config.branch
    return 1 if isinstance(module, UNet2DConditionModel) else int(module.config.layers_per_block) + 1


def cached_class(
    base: type[Any], config: CacheSettings, correct: Correct | None = None, memory: Memory = LATEST
) -> type[Any]:
    """A subclass of `base`, of the same name, whose evaluations follow the cache.

    The features go through `memory`; cached steps use what `correct` makes of what they find there.
    A ControlNet's residuals are added in full, of a cached step to the entries that it computes. An evaluation raises
    ValueError for a T2I-Adapter's residuals, and RuntimeError outside a run or a second time in one pass of a step.
    """
    signature = inspect.signature(base.forward)

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        clock = current_clock()
        if self in clock.evaluated:
            raise RuntimeError(
                "This cached model was evaluated twice in one step, and it keeps one feature: "
                "evaluate the guidance's two halves in one batch, or remove the cache."
            )
        _require_no_adapter(signature.bind(self, *args, **kwargs).arguments)
        clock.evaluated.add(self)
        full = clock.step in config.full_steps(clock.num_steps) or clock.cache_policy == "full"
        if not full and self not in clock.storage:
            raise RuntimeError("A cached step came before any full one: begin the run with step 0.")

        def take(hidden: torch.Tensor) -> torch.Tensor:
            if full:
                memory.keep(clock.storage, self, clock.step, hidden)
                return hidden
            used = memory.at(clock.storage, self, clock.step)
            return used if correct is None else correct(used, clock.step)

        output = base.forward(_cut(self, branch_of(self, config), full, take), *args, **kwargs)
        clock.record(full)
        return output

    return subclass(base, forward=forward)


def _require_no_adapter(arguments: Mapping[str, Any]) -> None:
    given = {name for name, value in arguments.items() if value is not None}
    # diffusers takes a ControlNet's residuals for an adapter's where none of the middle block comes with them.
    legacy = "down_block_additional_residuals" in given and "mid_block_additional_residual" not in given
    if legacy or "down_intrablock_additional_residuals" in given:
        raise ValueError(
            "DeepCache does not take the residuals of a T2I-Adapter, which belong to whole blocks: "
            "remove the cache, or sample without the adapter."
        )


def _cut(unet: Any, branch: int, full: bool, take: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`unet` with the blocks of one evaluation; all its other layers stay as they are."""
    view = copy.copy(unet)
    view._modules = dict(unet._modules)
    before, after = decoder_at(unet, branch, take)
    if full:
        view.up_blocks = nn.ModuleList([*before, *after])
    else:
        view.down_blocks, view.mid_block = nn.ModuleList(encoder_until(unet, branch)), _Skipped()
        view.up_blocks = nn.ModuleList(after)
    return view


class _Skipped(nn.Module):
    """The middle block of a cached step: the stored feature replaces what comes of it.

    A scalar, so that a ControlNet's residual of the middle block can be added to it whatever its shape.
    """

    def forward(self, hidden_states: torch.Tensor, *args: Any) -> torch.Tensor:
        return hidden_states.new_zeros(())
