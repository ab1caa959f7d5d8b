"""Renaming weights by rules: every source tensor is used exactly once, every target tensor is filled exactly once.

A layout pairs the modules of two networks, a table pairs the layers inside two modules of one kind; together they give
one rule per tensor.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

Shapes = Mapping[str, torch.Size]
#: Source layer -> target layer; three target layers stand for one layer that computes queries, keys and values.
Table = Mapping[str, str | tuple[str, ...]]
#: A module that is one layer itself.
LAYER: Table = {"": ""}


@dataclass(frozen=True)
class Rule:
    """The target tensors that one source tensor is made into.

    heads: where there are several targets, the source's first axis is [heads, targets, channels per head].
    """

    source: str
    targets: tuple[str, ...]
    heads: int = 1


def rules_of(
    modules: Iterable[tuple[str, str, Table]], shapes: Shapes, heads: Callable[[int], int] = lambda channels: 1
) -> Iterator[Rule]:
    """The rules of paired modules (source, target, table), for those target tensors that exist.

    heads: how many attention heads share so many channels.
    """
    for source, target, table in modules:
        for own, theirs in table.items():
            layers = [_join(target, layer) for layer in ((theirs,) if isinstance(theirs, str) else theirs)]
            for tensor in ("weight", "bias"):
                targets = tuple(_join(layer, tensor) for layer in layers)
                if all(name in shapes for name in targets):
                    count = heads(shapes[targets[0]][0]) if len(targets) > 1 else 1
                    yield Rule(_join(_join(source, own), tensor), targets, count)


def same_names(module: str, shapes: Shapes) -> Table:
    """The table of a module that is named alike on both sides."""
    inside = [name.removeprefix(f"{module}.") for name in shapes if name.startswith(f"{module}.")]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in inside)
    return {layer: layer for layer in layers}


def convert(
    state_dict: Mapping[str, torch.Tensor], rules: Iterable[Rule], shapes: Shapes, what: str
) -> dict[str, torch.Tensor]:
    """`state_dict` under the target names.

    what: the name of the network, for errors.
    Raises ValueError, in one sentence, for missing, unexpected or misshapen tensors, or where the rules do not cover
    the target.
    """
    rules = list(rules)
    _require_cover(rules, shapes, what)
    sources = {rule.source for rule in rules}
    problems = [
        *_named("is missing", sorted(sources - state_dict.keys())),
        *_named("is unexpected", sorted(state_dict.keys() - sources)),
        *_named("does not fit", [_mismatch(state_dict, rule, shapes) for rule in rules]),
    ]
    if problems:
        raise ValueError(f"These are not the weights of {what}: {'; '.join(problems)}.")
    return {
        target: tensor
        for rule in rules
        for target, tensor in zip(rule.targets, _parts(state_dict[rule.source], rule, shapes), strict=True)
    }


def _parts(tensor: torch.Tensor, rule: Rule, shapes: Shapes) -> Iterator[torch.Tensor]:
    if len(rule.targets) == 1:
        yield tensor.reshape(shapes[rule.targets[0]])
        return
    per_head = tensor.reshape(rule.heads, len(rule.targets), -1, *tensor.shape[1:])
    for target, part in zip(rule.targets, per_head.unbind(1), strict=True):
        yield part.reshape(shapes[target])


def _mismatch(state_dict: Mapping[str, torch.Tensor], rule: Rule, shapes: Shapes) -> str | None:
    """How a source tensor does not fit, if so; a kernel of size 1 may stand for a matrix."""
    if rule.source not in state_dict:
        return None
    tensor = state_dict[rule.source]
    rows, *rest = shapes[rule.targets[0]]
    expected, found = [rows * len(rule.targets), *rest], list(tensor.shape)
    if found[: len(expected)] != expected or any(size != 1 for size in found[len(expected) :]):
        return f"{rule.source}, {found} in the place of {expected},"
    return None if tensor.is_floating_point() else f"{rule.source}, of {tensor.dtype},"


def _named(problem: str, names: Iterable[str | None]) -> list[str]:
    """At most one clause: how many tensors have the problem, and the first of them."""
    found = [name for name in names if name is not None]
    if not found:
        return []
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return [f"{found[0]} {problem}{more}"]


def _require_cover(rules: list[Rule], shapes: Shapes, what: str) -> None:
    filled = Counter(target for rule in rules for target in rule.targets)
    uncovered = sorted(name for name in shapes if filled[name] != 1)
    if uncovered:
        raise ValueError(f"{what} has no CompVis counterpart: {uncovered[0]} is in no layout that is known here.")


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
