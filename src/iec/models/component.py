"""A part of a pipeline as data: a class, and what its constructor takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from iec.models.class_embedder import ClassEmbedder
from iec.models.fixed_heads import FixedHeadsUNet2DModel
from iec.runtime import SpacedDDIMScheduler

_OURS = {kind.__name__: kind for kind in (ClassEmbedder, FixedHeadsUNet2DModel, SpacedDDIMScheduler)}


@dataclass(frozen=True)
class Component:
    """kind: a class of ours or of diffusers, by name. settings: the arguments of its constructor."""

    kind: str
    settings: Mapping[str, Any]

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Component":
        """From a TOML table: `class` is the kind, and "none" stands for None, which TOML does not have."""
        settings = {name: None if value == "none" else value for name, value in table.items() if name != "class"}
        return cls(table["class"], settings)

    def make(self) -> Any:
        """A new one; a network gets random weights."""
        return (_OURS.get(self.kind) or getattr(diffusers, self.kind))(**self.settings)

    def make_empty(self) -> Any:
        """A network without memory for its weights, which are to be assigned."""
        with torch.device("meta"):
            return self.make()

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each of a network's tensors, by name."""
        return {name: tensor.shape for name, tensor in self.make_empty().state_dict().items()}
