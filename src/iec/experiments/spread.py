"""How reports write a figure with its interval, and a change in per cent."""

from iec.evaluation.bootstrap import Estimate
from iec.experiments.rows import Verdict


def spread(estimate: Estimate, scale: float, digits: int) -> str:
    """The value and its interval, times `scale`, to so many decimals: `4.3 [3.8, 4.9]`."""
    value, low, high = (scale * part for part in (estimate.value, estimate.low, estimate.high))
    return f"{value:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]"


def significant_spread(estimate: Estimate, digits: int = 3) -> str:
    """The value and its interval to so many significant digits, where their size is not known beforehand."""
    return f"{estimate.value:.{digits}g} [{estimate.low:.{digits}g}, {estimate.high:.{digits}g}]"


def kernel_spread(distance: Estimate) -> str:
    """A kernel distance, times 1000."""
    return spread(distance, 1000, 1)


def psnr_spread(psnr: Estimate | None) -> str:
    """The PSNR to full precision in dB; None is full precision itself."""
    return "reference" if psnr is None else spread(psnr, 1, 1)


def difference_spread(difference: Estimate) -> str:
    """A paired difference of kernel distances, times 1000; finer than the distances, as its interval is narrower.

    An end just below zero is `-0.00`: on which side it lies is the verdict.
    """
    value, low, high = (1000 * part for part in (difference.value, difference.low, difference.high))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def verdict_spread(verdict: Verdict) -> str:
    """The difference that decides, and what it decides: `-0.41 [-0.64, -0.19] wins`."""
    return f"{difference_spread(verdict.difference)} {verdict.outcome}"


def signed_percent(percent: float, digits: int = 0) -> str:
    """A change in per cent: `+5`, and `+0` for what rounds to nothing."""
    return f"{percent:+z.{digits}f}"
