"""Where x_t enters a recording.

Mostly `sample` itself feeds the network. Where it is a slice or a packing of the tensor that does, the walk goes back
through those gathers, and a new state is put into that tensor at the same places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iec.pipelines.recording import Event, Operation, tensors_in
from iec.pipelines.replaying import depends

# Functions whose every output element is one input element.
_GATHERS = frozenset(
    "__getitem__ view reshape permute transpose flatten unflatten squeeze unsqueeze chunk split narrow select "
    "contiguous unbind clone detach expand movedim swapaxes".split()
)
_CASTS = frozenset("to float double half bfloat16 type".split())


@dataclass(frozen=True)
class Source:
    """The tensor that feeds the network, and where in it (flat indices, of sample's shape) the sample lies."""

    tensor: torch.Tensor
    places: torch.Tensor | None = None

    def holding(self, sample: torch.Tensor) -> torch.Tensor:
        """The tensor with another sample in its place, in its own dtype."""
        value = sample.to(self.tensor.dtype)
        if self.places is None:
            return value
        flat = self.tensor.flatten().clone()
        flat[self.places.flatten()] = value.flatten()
        return flat.view(self.tensor.shape)


def find_source(events: Sequence[Event], sample: torch.Tensor, target: torch.Tensor) -> Source | None:
    """The source through which `target` depends on `sample`, or None."""
    producers = {
        id(tensor): event
        for event in events
        if isinstance(event, Operation) and event.overwritten is None
        for tensor in event.made
        if not (event.args and tensor is event.args[0])  # a cast or copy that returned its own argument made nothing
    }
    chain: list[Operation] = []
    tensor = sample
    while not depends(events, tensor, target):
        producer = producers.get(id(tensor))
        if producer is None or producer in chain or not _is_gather(producer):
            return None
        chain.append(producer)
        tensor = producer.args[0]
    if not chain:
        return Source(tensor)
    places = _places(tensor, sample, chain[::-1])
    # Two elements of the sample from one place could not be given two values.
    return Source(tensor, places) if len(torch.unique(places)) == places.numel() else None


def _is_gather(operation: Operation) -> bool:
    name = getattr(operation.function, "__name__", "")
    return name in _GATHERS | _CASTS and bool(operation.args) and isinstance(operation.args[0], torch.Tensor)


def _places(tensor: torch.Tensor, sample: torch.Tensor, chain: Sequence[Operation]) -> torch.Tensor:
    """Push the flat indices of `tensor` through the gathers that made `sample` of it."""
    indices = {id(tensor): torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)}
    for operation in chain:
        first = indices[id(operation.args[0])]
        if getattr(operation.function, "__name__", "") in _CASTS:
            output = first
        else:
            output = operation.function(first, *operation.args[1:], **operation.kwargs)
        for recorded, gathered in zip(operation.made, tensors_in(output), strict=True):
            indices[id(recorded)] = gathered
    return indices[id(sample)]
