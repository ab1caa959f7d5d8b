"""The forecast of a stored feature: what the full steps before it say about the steps after it.

With s, s', s'' the last full steps, cached step i uses F_s + g_1 (F_s - F_s') + g_2 (F_s - 2 F_s' + F_s''); a term
whose full steps do not exist yet is left out.
"""

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch

from iec.efficient.caching.memory import LATEST, Memory, Storage

#: How many differences a forecast uses, and how many full steps before the latest they need.
TERMS = 2


class Forecast:
    """The memory of a run with these full steps (sorted, beginning with 0) and gains, float64 [T, 2].

    A storage holds, for every owner, the feature to forecast from under `owner`, and the features of its last three
    full steps under `(owner, step)`: plain tensors, each replaced and never written into.
    """

    def __init__(self, full_steps: Sequence[int], gains: torch.Tensor) -> None:
        self.full_steps, self.gains = list(full_steps), gains

    def keep(self, storage: Storage, owner: Hashable, step: int, feature: torch.Tensor) -> None:
        """Keep the feature [B, C, ...] of a full evaluation at `step`, in the place of an earlier one of this step.

        A cached step may be computed in full too, by a correction pass. The history stays that of the full steps, for
        which the gains were found; what is kept is such that the forecast of this step is its feature, and of the
        steps after it that feature plus what the forecast changes from here on.
        """
        full, *earlier = self.history(step)
        if step == full:
            storage[owner, step] = feature
            for old in earlier[TERMS:]:
                storage.pop((owner, old), None)
        storage[owner] = self._moved(storage, owner, step, feature, -1)

    def at(self, storage: Storage, owner: Hashable, step: int) -> torch.Tensor:
        """The forecast [B, C, ...] for cached step `step`."""
        return self._moved(storage, owner, step, storage[owner], 1)

    def differences(self, storage: Storage, owner: Hashable, step: int) -> list[torch.Tensor]:
        """What the gains of `step` multiply: none, the first, or both differences of the full steps until then."""
        features = [storage[owner, full] for full in self.history(step)[: TERMS + 1]]
        first = [new - old for new, old in pairwise(features)]
        return [*first[:1], *(new - old for new, old in pairwise(first))]

    def history(self, step: int) -> list[int]:
        """The full steps until `step`, the latest first, and one more than a forecast needs."""
        end = bisect_right(self.full_steps, step)
        return self.full_steps[max(0, end - TERMS - 2) : end][::-1]

    def _moved(self, storage: Storage, owner: Hashable, step: int, feature: torch.Tensor, sign: int) -> torch.Tensor:
        gains = self.gains[step].tolist()
        if not any(gains):  # as at full steps, and before there is a history
            return feature
        for gain, difference in zip(gains, self.differences(storage, owner, step), strict=False):
            feature = feature + sign * gain * difference
        return feature


def memory_of(full_steps: Sequence[int], gains: torch.Tensor | None) -> Memory:
    """A forecast with these gains; None: nothing is forecast."""
    return LATEST if gains is None else Forecast(full_steps, gains)
