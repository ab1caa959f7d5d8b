"""Replaying a recording with another state in the place of x_t.

Tensors are followed by identity: the recording keeps every one of them alive, so identities stay unique.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from iec.pipelines.recording import Evaluation, Event, Operation, tensors_in

Evaluate = Callable[[Evaluation, tuple[Any, ...], dict[str, Any]], Any]


def depends(events: Sequence[Event], source: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether `target` depends on `source` through at least one evaluation."""
    reached = {id(source)}
    after_evaluation: set[int] = set()
    for event in events:
        inputs = {id(tensor) for tensor in event.given}
        if not inputs & reached or event.output is source:
            continue
        outputs = {id(tensor) for tensor in event.made}
        if isinstance(event, Operation) and event.overwritten is not None:
            outputs.add(id(event.overwritten))
        reached |= outputs
        if isinstance(event, Evaluation) or inputs & after_evaluation:
            after_evaluation |= outputs
    return id(target) in after_evaluation


def replay(
    events: Sequence[Event], source: torch.Tensor, value: torch.Tensor, target: torch.Tensor, evaluate: Evaluate
) -> torch.Tensor:
    """What `target` would have been with `value` in the place of `source`.

    evaluate(event, args, kwargs): the output of one network evaluation with the new arguments.
    """
    new = {id(source): value}
    for event in events:
        if event.output is source or not any(id(t) in new for t in event.given):
            continue
        if isinstance(event, Operation):
            overwritten = event.overwritten
            if overwritten is not None:  # never write into a recorded tensor
                new[id(overwritten)] = new.get(id(overwritten), overwritten).clone()
            output = event.function(*_substitute(event.args, new), **_substitute(event.kwargs, new))
        else:
            output = evaluate(event, _substitute(event.args, new), _substitute(event.kwargs, new))
        for recorded, replayed in zip(event.made, tensors_in(output), strict=True):
            new[id(recorded)] = replayed
    return new[id(target)]


def _substitute(value: Any, new: dict[int, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return new.get(id(value), value)
    if type(value) in (list, tuple):
        return type(value)(_substitute(item, new) for item in value)
    if type(value) is dict:
        return {key: _substitute(item, new) for key, item in value.items()}
    return value
