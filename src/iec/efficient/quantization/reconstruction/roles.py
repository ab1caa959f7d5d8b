"""The role of a unit beside a cache, which decides what it is trained on and what of it is trained (spec 4.4)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

#: Before the region that cached steps skip, inside it, and from where they re-enter on.
BEFORE, SKIPPED, REENTERED = 0, 1, 2


@dataclass(frozen=True)
class Reentry:
    """What a cache changes for the quantized network.

    resnet: the name of the block where cached steps re-enter. main [N, C, H, W]: what takes the place of its main input
    in the samples at cached steps, which `cached` [N] tells. roles: of every layer that may be quantized, by name.
    """

    resnet: str
    main: torch.Tensor
    cached: torch.Tensor
    roles: Mapping[str, int]


def roles_of(units: Mapping[str, tuple[str, ...]], reentry: Reentry | None) -> dict[str, int]:
    """The role of every unit, of which the layers are given; without a cache all are before."""
    return {unit: BEFORE if reentry is None else reentry.roles[layers[0]] for unit, layers in units.items()}


def trained_units(roles: Mapping[str, int], reentry: Reentry | None, bits: int) -> list[str]:
    """The units that are reconstructed: all of them, but beside a cache with weights of 8 bits only the re-entered."""
    return [unit for unit, role in roles.items() if reentry is None or bits < 8 or role == REENTERED]


def samples_of(role: int, steps: torch.Tensor, reentry: Reentry | None) -> torch.Tensor:
    """The samples that a unit is trained on, int64: inside the skipped region those of full steps, else all."""
    everything = torch.arange(len(steps), device=steps.device)
    return everything if reentry is None or role != SKIPPED else everything[~reentry.cached]
