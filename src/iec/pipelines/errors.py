"""A pipeline that correction cannot follow says so; it is never corrected wrongly."""

from typing import Any


class IECUnsupportedError(RuntimeError):
    """The pipeline does something between two scheduler steps that cannot be replayed exactly."""


def took_no_step(pipe: Any) -> IECUnsupportedError:
    """The error of a run that its own scheduler had no part in."""
    return IECUnsupportedError(
        f"This {type(pipe).__name__} took no step of its own scheduler, so nothing could be corrected: disable "
        "correction for it (iec.disable)."
    )
