"""DPS: which steps to compute in full, by dynamic programming over feature distances (spec 3.1).

A group of consecutive steps [j, n) reuses the feature of its first step and costs the sum of the L1 distances to it.
The groups, about T/N of them and each between N/2 and 2N steps long, are chosen to cost least together.
"""

import math

import torch


class FeatureDistances:
    """The L1 distances that DPS needs, computed once each, as the features of a run arrive.

    At most the last 2N - 1 features are held; distances of several batches add up.
    table: float64 [T, 2N]; entry [j, d] is the distance between the features of steps j and j + d.
    Raises ValueError where the interval is below 1 or above T / 2.
    """

    def __init__(self, num_steps: int, interval: int) -> None:
        require_interval(num_steps, interval)
        self.num_steps, self.interval = num_steps, interval
        self.table = torch.zeros(num_steps, 2 * interval, dtype=torch.float64)
        self._recent: list[torch.Tensor] = []
        self._next = 0

    def add(self, step: int, feature: torch.Tensor) -> None:
        """Add the feature of `step` [B, ...]; the steps of a batch come in order, and step 0 begins another batch.

        Raises ValueError where a step is out of order.
        """
        if step == 0:
            self._recent, self._next = [], 0
        if step != self._next or step >= self.num_steps:
            raise ValueError(f"The feature of step {step} came out of order.")
        self._next, feature = step + 1, feature.detach()
        for back, earlier in enumerate(reversed(self._recent), 1):
            distance = (feature - earlier).abs_().sum(dtype=torch.float64)
            self.table[step - back, back] += distance.cpu()
        self._recent = [*self._recent, feature][-(2 * self.interval - 1) :]


def require_interval(num_steps: int, interval: int) -> None:
    """Raise ValueError unless 1 <= N <= T / 2."""
    if interval < 1 or 2 * interval > num_steps:
        raise ValueError(
            f"DPS needs an interval from 1 to half of the steps, but got {interval} for {num_steps} steps."
        )


def dps_schedule(table: torch.Tensor, interval: int, groups: int | None = None) -> tuple[int, ...]:
    """The full steps, sorted, beginning with 0: the groups of least total cost; of equals, the earliest starts.

    table: [T, >= 2N], the distance between steps j and j + d at [j, d]. groups: how many; ceil(T/N) by default, other
    where a sampler makes more calls than steps. Raises ValueError where N > T / 2, or so many groups do not fit.
    """
    num_steps = len(table)
    require_interval(num_steps, interval)
    groups = math.ceil(num_steps / interval) if groups is None else groups
    shortest, longest = math.ceil(interval / 2), 2 * interval
    if not groups * shortest <= num_steps <= groups * longest:
        raise ValueError(f"{num_steps} steps do not fit {groups} groups of {shortest} to {longest} steps.")
    # cost[j][m - 1]: the cost of the group [j, j + m).
    cost = table[:, :longest].cumsum(1).tolist()
    least = [0.0] + [math.inf] * num_steps
    starts: list[list[int]] = []
    for _ in range(groups):
        best, start = [math.inf] * (num_steps + 1), [-1] * (num_steps + 1)
        for end in range(shortest, num_steps + 1):
            for j in range(max(0, end - longest), end - shortest + 1):
                total = least[j] + cost[j][end - j - 1]
                if total < best[end]:
                    best[end], start[end] = total, j
        least = best
        starts.append(start)
    steps, end = [], num_steps
    for start in reversed(starts):
        end = start[end]
        steps.append(end)
    return tuple(reversed(steps))


def schedule_cost(table: torch.Tensor, full_steps: tuple[int, ...]) -> float:
    """What DPS minimizes: the sum of the distances of all steps to the full step whose feature they reuse."""
    ends = [*full_steps[1:], len(table)]
    return sum(float(table[j, : end - j].sum()) for j, end in zip(full_steps, ends, strict=True))
