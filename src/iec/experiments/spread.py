"""How reports write a figure with its interval."""

from iec.evaluation.bootstrap import Estimate


def spread(estimate: Estimate, scale: float, digits: int) -> str:
    """The value and its interval, times `scale`, to so many decimals: `4.3 [3.8, 4.9]`."""
    value, low, high = (scale * part for part in (estimate.value, estimate.low, estimate.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
