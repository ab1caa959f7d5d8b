"""What reconstruction did to one unit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UnitRecord:
    """One unit: its name, its role beside a cache (0 before the skipped region, 1 inside, 2 from the re-entry on), and
    how many samples it was trained on.

    before, after: its error (squared, summed over channels, averaged over the rest) with weights rounded to the
    nearest, and with what was found. kept: whether that is less, so that what was found is used.
    """

    unit: str
    role: int
    samples: int
    before: float
    after: float
    kept: bool
