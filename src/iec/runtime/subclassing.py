"""Objects that behave in another way for a while, by a class that passes for their own."""

from typing import Any


def subclass(base: type[Any], **members: Any) -> type[Any]:
    """A subclass of `base` with these members, and with the name and the documentation of `base`."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), {**names, **members})
