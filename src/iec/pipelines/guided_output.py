"""The pipeline's own guided model output at another state, by replaying what it just did."""

from collections.abc import Sequence
from typing import Any

import torch

from iec.pipelines.errors import IECUnsupportedError
from iec.pipelines.recording import Evaluation, Event, tensors_in
from iec.pipelines.replaying import replay
from iec.pipelines.source import find_source

_WAY_OUT = "Disable correction for this pipeline (iec.disable), or report the pipeline and its call."


class GuidedOutput:
    """x -> the model output that the pipeline would have stepped with at x: same timestep, same conditioning.

    Made from the events recorded before one step. The replay is verified at x_t first, with the recorded evaluations:
    it must reproduce every network input and the model output bit for bit. Raises IECUnsupportedError otherwise.
    """

    def __init__(self, events: Sequence[Event], sample: torch.Tensor, output: torch.Tensor) -> None:
        source = find_source(events, sample, output)
        if source is None:
            raise IECUnsupportedError(
                "The model output does not depend on the sample through a recorded network call, so the step cannot "
                f"be evaluated again. {_WAY_OUT}"
            )
        self._events, self._source, self._output = events, source, output
        self._verify(sample)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate at `x`, which has the shape of the sample."""
        return self._replay(x, lambda event, args, kwargs: event.call(*args, **kwargs))

    def _replay(self, x: torch.Tensor, evaluate: Any) -> torch.Tensor:
        return replay(self._events, self._source.tensor, self._source.holding(x), self._output, evaluate)

    def _verify(self, sample: torch.Tensor) -> None:
        replayed = self._replay(sample, _recorded_output)
        if not torch.equal(replayed, self._output):
            raise IECUnsupportedError(
                f"Replaying the pipeline's own step does not reproduce its model output. {_WAY_OUT}"
            )


def _recorded_output(event: Evaluation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    for expected, replayed in zip(event.inputs, tensors_in((args, kwargs)), strict=True):
        if expected is not replayed and not torch.equal(expected, replayed):
            raise IECUnsupportedError(
                f"Replaying the pipeline's own step does not reproduce the input of its network. {_WAY_OUT}"
            )
    return event.outputs
