"""Which steps are corrected, by position (the paper's ±A is `edges:A`).

A selector is `all`, `none`, `first`, `last`, `edges:A`, a collection of step indices, or a callable
`(step, num_steps) -> bool`. Step 0 is the noisiest.
"""

from collections.abc import Callable, Collection
from fractions import Fraction

StepSelector = str | Collection[int] | Callable[[int, int], bool]

_NAMES = "'all', 'none', 'first', 'last', 'edges:A' (A a fraction such as 1/10), a list of step indices, or a callable"


def edges_fraction(selector: str) -> Fraction:
    """The exact A of `edges:A`, in (0, 1/2]. Raises ValueError for anything else."""
    text = selector.removeprefix("edges:")
    try:
        fraction = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not 0 < fraction <= Fraction(1, 2):
        raise ValueError(f"In '{selector}', A must be a fraction above 0 and at most 1/2, such as edges:1/10.")
    return fraction


def validate_selector(selector: StepSelector) -> None:
    """Raise ValueError or TypeError, in one sentence, unless `selector` can be resolved for some number of steps."""
    if isinstance(selector, str):
        if selector.startswith("edges:"):
            edges_fraction(selector)
        elif selector not in ("all", "none", "first", "last"):
            raise ValueError(f"Unknown step selector '{selector}': use {_NAMES}.")
    elif isinstance(selector, Collection):
        for index in selector:
            if isinstance(index, bool) or not hasattr(index, "__index__"):
                raise TypeError(f"Step indices must be integers, but {index!r} is not.")
            if index < 0:
                raise ValueError(f"Step indices count from 0 (the noisiest step), but {index} is negative.")
    elif not callable(selector):
        raise TypeError(f"{selector!r} is no step selector: use {_NAMES}.")


def select_steps(selector: StepSelector, num_steps: int) -> frozenset[int]:
    """The steps of 0..num_steps-1 that `selector` chooses (spec: i < A T or i >= T - A T, in exact arithmetic).

    Raises ValueError where an index lies beyond the last step.
    """
    validate_selector(selector)
    steps = range(num_steps)
    if callable(selector):
        return frozenset(step for step in steps if selector(step, num_steps))
    if not isinstance(selector, str):
        beyond = sorted(index for index in selector if index >= num_steps)
        if beyond:
            raise ValueError(
                f"Step {beyond[0]} was selected for correction, "
                f"but this run has {num_steps} steps (0 to {num_steps - 1})."
            )
        return frozenset(selector)
    if selector == "all":
        return frozenset(steps)
    if selector == "first":
        return frozenset(steps[:1])
    if selector == "last":
        return frozenset(steps[-1:])
    if selector == "none":
        return frozenset()
    reach = edges_fraction(selector) * num_steps
    return frozenset(step for step in steps if step < reach or step >= num_steps - reach)
