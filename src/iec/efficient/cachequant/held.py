"""What cached steps would use of a run that is computed in full at every step."""

from collections.abc import Collection

import torch

from iec.efficient.caching.memory import LATEST, Memory, Storage


class HeldFeatures:
    """The features of the full steps, as `memory` keeps them for the cached ones; those of cached steps are not kept.

    The features of the next batch take the place of those of the one before.
    """

    def __init__(self, full_steps: Collection[int], memory: Memory = LATEST) -> None:
        self.full_steps, self.memory = full_steps, memory
        self._storage: Storage = {}

    def used(self, step: int, feature: torch.Tensor) -> torch.Tensor:
        """What `step` uses [B, C, ...], whose own feature is `feature`; of every batch, the steps come in order.

        Raises ValueError where a cached step comes before any full one.
        """
        if step in self.full_steps:
            if step == 0:
                self._storage.clear()
            self.memory.keep(self._storage, None, step, feature)
            return feature
        if None not in self._storage:
            raise ValueError(f"The feature of step {step} came before that of a full step.")
        return self.memory.at(self._storage, None, step)
