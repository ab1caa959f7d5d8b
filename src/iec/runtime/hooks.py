"""A method of one object that is intercepted while runs are open.

The hook is an instance attribute that shadows the method. It is installed once, however many runs share the object,
and finds the run that it serves in a context variable; without one it is a plain call.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_lock = threading.Lock()


class Hook:
    """Stands before `owner.name`; `find(owner)` gives the handler of the run in progress, or None for a plain call."""

    def __init__(self, owner: Any, name: str, find: Callable[[Any], Handler | None]) -> None:
        self.owner, self.name, self.find = owner, name, find
        self.had_attribute = name in owner.__dict__
        self.original = getattr(owner, name)
        self.users = 0
        # Pipelines read the signature of `step` and `forward` to decide which arguments to pass.
        functools.update_wrapper(self, self.original)
        self.__signature__ = inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handler = self.find(self.owner)
        if handler is None:
            return self.original(*args, **kwargs)
        return handler(self.original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A deep copy of the owner gets its own plain method: a copied hook would step the original.

        A copy of the owner's attributes alone, which a panorama puts back later, keeps the hook.
        """
        copied = memo.get(id(self.owner))
        return self if copied is None else getattr(type(copied), self.name).__get__(copied)


def install(owner: Any, name: str, find: Callable[[Any], Handler | None]) -> Hook:
    """Put a hook before `owner.name`, or count one more user of the hook that is there."""
    with _lock:
        hook = owner.__dict__.get(name)
        if not (isinstance(hook, Hook) and hook.owner is owner):
            hook = Hook(owner, name, find)
            owner.__dict__[name] = hook
        hook.users += 1
        return hook


def uninstall(hook: Hook) -> None:
    """Count one user less, and remove the hook with the last one."""
    with _lock:
        hook.users -= 1
        if hook.users or hook.owner.__dict__.get(hook.name) is not hook:
            return  # still in use, or somebody replaced it during the run, as model offloading does
        if hook.had_attribute:
            hook.owner.__dict__[hook.name] = hook.original
        else:
            del hook.owner.__dict__[hook.name]
