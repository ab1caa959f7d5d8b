"""A pipeline that correction cannot follow says so; it is never corrected wrongly."""


class IECUnsupportedError(RuntimeError):
    """The pipeline does something between two scheduler steps that cannot be replayed exactly."""
