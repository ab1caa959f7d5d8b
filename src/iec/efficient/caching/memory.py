"""What a cache keeps of its full evaluations, and what its cached steps use of that."""

from collections.abc import Hashable, MutableMapping
from typing import Any, Protocol

import torch

#: A run's own memory, or a dictionary like it.
Storage = MutableMapping[Any, Any]


class Memory(Protocol):
    """Keeps features [B, C, ...] in a storage, for every owner apart, as plain tensors.

    The tensors are replaced and never written into; one of them is kept under the owner itself.
    """

    def keep(self, storage: Storage, owner: Hashable, step: int, feature: torch.Tensor) -> None:
        """Keep the feature of a full evaluation at `step`, in the place of an earlier one of this step."""

    def at(self, storage: Storage, owner: Hashable, step: int) -> torch.Tensor:
        """What cached step `step` uses. Raises KeyError where nothing is kept."""


class _Latest:
    """Keeps the latest feature, and uses it as it is."""

    def keep(self, storage: Storage, owner: Hashable, step: int, feature: torch.Tensor) -> None:
        storage[owner] = feature

    def at(self, storage: Storage, owner: Hashable, step: int) -> torch.Tensor:
        feature: torch.Tensor = storage[owner]
        return feature


#: What caches without a forecast keep.
LATEST: Memory = _Latest()
