"""One `scheduler.step` call as the map e -> x_{t-1} from the fixed x_t: taken dry as often as needed, for real once."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from iec.pipelines.errors import IECUnsupportedError
from iec.pipelines.noise_state import NoiseState
from iec.pipelines.scheduler_state import SchedulerState


class StepMap:
    """The step map of one call `step(*args, **kwargs)` of `scheduler`.

    output: the model output e_0 that the pipeline stepped with. sample: x_t. timestep: as given; None where it is not.
    Dry steps compute in float32 or better and leave the scheduler and every random generator as they were.
    """

    def __init__(self, scheduler: Any, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._step = step
        # The scheduler's own method: during a run its hook has the signature ready.
        self._call = inspect.signature(scheduler.step).bind(*args, **kwargs)
        arguments = self._call.arguments
        missing = {"model_output", "sample"} - set(arguments)
        if missing:
            raise IECUnsupportedError(
                f"{type(scheduler).__name__}.step has no argument named '{min(missing)}', so it cannot be taken again: "
                "use one of diffusers' schedulers."
            )
        self.output: torch.Tensor = arguments["model_output"]
        self.sample: torch.Tensor = arguments["sample"]
        self.timestep: Any = arguments.get("timestep")
        if not self.sample.is_floating_point():
            raise IECUnsupportedError(
                f"{type(scheduler).__name__} steps discrete states, which cannot be moved a part of the way: disable "
                "correction for this pipeline (iec.disable)."
            )
        self._scheduler_state = SchedulerState(scheduler)
        self._noise_state = NoiseState(arguments.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the iterated state: the sample's, float32 at least."""
        return torch.promote_types(self.sample.dtype, torch.float32)

    def dry(self, output: torch.Tensor) -> torch.Tensor:
        """x_{t-1} for another model output, with the step's own noise and history, and nothing changed."""
        try:
            return previous_sample(self._take(output.to(self.dtype), self.sample.to(self.dtype))).to(self.dtype)
        finally:
            self._scheduler_state.restore()
            self._noise_state.restore()

    def commit(self, output: torch.Tensor) -> Any:
        """Take the step for real; the scheduler's history then holds `output`."""
        return self._take(output, self.sample)

    def _take(self, output: torch.Tensor, sample: torch.Tensor) -> Any:
        arguments = {**self._call.arguments, "model_output": output, "sample": sample}
        call = inspect.BoundArguments(self._call.signature, arguments)
        return self._step(*call.args, **call.kwargs)


def previous_sample(stepped: Any) -> torch.Tensor:
    """x_{t-1} from what `scheduler.step` returned."""
    previous: torch.Tensor = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
    return previous


def with_previous_sample(stepped: Any, previous: torch.Tensor) -> Any:
    """What `scheduler.step` returned, with another x_{t-1}."""
    if isinstance(stepped, tuple):
        return (previous, *stepped[1:])
    stepped.prev_sample = previous
    return stepped


def timestep_number(timestep: Any) -> float | int | None:
    """A timestep as a number; of several, the first; None where there is none."""
    if isinstance(timestep, torch.Tensor):
        return timestep.flatten()[0].item() if timestep.numel() else None
    return timestep if isinstance(timestep, (int, float)) else None
