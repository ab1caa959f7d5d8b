"""A histogram of values that stream by, which widens as they come, exactly.

Its bins have the width of a power of two and begin at multiples of it, so that widening merges pairs of bins, and what
is counted does not depend on the order or the batches in which the values came.
"""

import math

import torch

from iec.efficient.accumulators import State

BINS = 2048
#: Below it bins would be narrower than what float32 tells apart.
_SMALLEST_EXPONENT = -126


class Histogram:
    """Counts of values in `BINS` bins. Zeros are left out of them: every grid holds zero, so they lose nothing.

    counts: int64 [BINS], of the bins from `first` on; bin j holds the values in [j, j + 1) * 2^exponent.
    low, high: the ends of the smallest range that holds all values and zero. total: how many values were added.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.exponent = _SMALLEST_EXPONENT
        self.first = 0
        self.low = self.high = 0.0
        self.total = 0

    def add(self, values: torch.Tensor) -> None:
        """Count `values`, of any shape and device. Raises ValueError where one is infinite or NaN."""
        if not values.numel():
            return
        values = values.detach().float().flatten()
        low, high = (float(bound) for bound in values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("Infinite or NaN values cannot be counted.")
        self._widen(low, high)
        bins = (values * 2.0**-self.exponent).floor_().sub_(self.first).int()
        self.counts += torch.bincount(bins, minlength=BINS).cpu()
        self.counts[-self.first] -= values.numel() - int(values.count_nonzero())
        self.total += values.numel()

    def merge(self, other: "Histogram") -> None:
        """Count all that `other` counted."""
        self._widen(other.low, other.high)
        self.counts += _moved(other.counts, other.first, self.first, self.exponent - other.exponent)
        self.total += other.total

    def state(self) -> State:
        """All that was counted: tensors of the same shapes for every histogram."""
        place, ends = [self.exponent, self.first, self.total], [self.low, self.high]
        return {"counts": self.counts, "place": torch.tensor(place), "ends": torch.tensor(ends, dtype=torch.float64)}

    def load(self, state: State) -> None:
        """Become what gave `state`."""
        self.counts = state["counts"]
        self.exponent, self.first, self.total = state["place"].tolist()
        self.low, self.high = state["ends"].tolist()

    def edges_and_counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The BINS + 1 edges, float64, and the counts between them, float64. Raises ValueError where it is empty."""
        if not self.total:
            raise ValueError("A histogram without values has no range.")
        edges = (torch.arange(BINS + 1, dtype=torch.float64) + self.first) * 2.0**self.exponent
        return edges, self.counts.double()

    def _widen(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = self.exponent
        while _bin(self.high, exponent) - _bin(self.low, exponent) >= BINS:
            exponent += 1
        first = _bin(self.low, exponent)
        if (exponent, first) != (self.exponent, self.first):
            # In place: thousands of small lasting tensors among large passing ones would tear the memory to pieces.
            self.counts.copy_(_moved(self.counts, self.first, first, exponent - self.exponent))
            self.exponent, self.first = exponent, first


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _moved(counts: torch.Tensor, first: int, new_first: int, halvings: int) -> torch.Tensor:
    """The counts of bins from `first` on, in bins 2^halvings times as wide from `new_first` on."""
    # Shifting a 64-bit number by more than 63 is undefined; 62 already leaves only its sign.
    bins = ((torch.arange(BINS) + first) >> min(halvings, 62)) - new_first
    used = counts > 0
    return torch.zeros_like(counts).index_add_(0, bins[used], counts[used])
