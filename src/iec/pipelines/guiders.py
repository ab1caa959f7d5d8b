"""Guiders that hook a network for the length of one call (skip-layer, perturbed-attention and auto guidance).

When a step is taken their hooks are gone again, and a replay without them would be wrong without a word: it makes no
difference to what is recorded. So a call of the network is bound to the hooks that it was made with.
"""

from collections.abc import Callable, Iterable
from typing import Any

from diffusers.guiders import BaseGuidance
from torch import nn

Call = Callable[..., Any]


def has_guider(components: Iterable[Any]) -> bool:
    """Whether one of a pipeline's components is a guider."""
    return any(isinstance(component, BaseGuidance) for component in components)


class GuiderHooks:
    """The hooks of the modules inside `network`."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = [module for module in network.modules() if module is not network]

    def bound(self, call: Call) -> Call:
        """The call with the hooks of now."""
        then = self._installed()

        def as_then(*args: Any, **kwargs: Any) -> Any:
            now = self._installed()
            _install(then)
            try:
                return call(*args, **kwargs)
            finally:
                _install(now)

        return as_then

    def _installed(self) -> list[tuple[Any, dict[str, Any]]]:
        """What diffusers' hooks change: each module's own `forward`, and what each hook calls."""
        entries = []
        for module in self.modules:
            entries.append((module, _chosen(module, ("forward",))))
            registry = module.__dict__.get("_diffusers_hook")
            for reference in registry._fn_refs if registry is not None else ():
                entries.append((reference, _chosen(reference, ("forward", "original_forward"))))
        return entries


def _chosen(owner: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: vars(owner)[name] for name in names if name in vars(owner)}


def _install(entries: Iterable[tuple[Any, dict[str, Any]]]) -> None:
    for owner, values in entries:
        if not values:
            vars(owner).pop("forward", None)
        vars(owner).update(values)
