"""The reference trajectories x*_i: the states at the deployed timesteps, integrated in finer steps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from iec.fitting.deployed_calls import Batches
from iec.fitting.fine_scheduler import exact_state, fine_scheduler
from iec.pipelines.step_map import timestep_number
from iec.runtime import Part, Participant, Run, timestep_of
from iec.storage.files import write_atomically


class ReferenceStates:
    """The states of every batch, in a folder: x*_0 .. x*_T of its trajectories, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, batch: int) -> bool:
        """Whether the states of that batch are there."""
        return self._file(batch).exists()

    def keep(self, batch: int, states: list[torch.Tensor]) -> None:
        """Keep x*_0 .. x*_T [B, ...]."""
        tensors = {str(i): state.cpu().contiguous() for i, state in enumerate(states)}
        write_atomically(self._file(batch), lambda path: save_file(tensors, path))

    def state(self, batch: int, index: int) -> torch.Tensor:
        """x*_index of one batch. Raises ValueError for a corrupt file."""
        try:
            with safe_open(self._file(batch), "pt") as file:
                state: torch.Tensor = file.get_tensor(str(index))
                return state
        except SafetensorError as error:
            raise ValueError(f"'{self._file(batch)}' is corrupt: delete it and calibrate again.") from error

    def _file(self, batch: int) -> Path:
        return self.folder / f"reference-{batch:05d}.safetensors"


def make_reference(
    pipe: DiffusionPipeline,
    num_steps: int,
    substeps: int,
    batches: Batches,
    inputs: Mapping[str, Any],
    states: ReferenceStates,
    on_batch: Callable[[int], None],
) -> None:
    """Run every batch that is not there yet; `on_batch(trajectories)` after each.

    Raises ValueError, before anything is evaluated, for a scheduler that no correction can be fitted to.
    """
    for number, part in enumerate(batches.parts):
        if not states.has(number):
            recorder = _Recorder(num_steps)
            scheduler = fine_scheduler(pipe.scheduler, substeps)
            batches.call(pipe, scheduler, num_steps, inputs, part, recorder)
            states.keep(number, recorder.states)
        on_batch(len(part))


class _Recorder(Participant):
    """Takes the states at the deployed timesteps, and keeps the clock at the deployed step, whichever part of it runs.

    A network that depends on the step, as a quantized one does, is then as it is in the deployed run.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.states: list[torch.Tensor] = []

    def join(self, run: Run) -> "_Recording":
        return _Recording(run, self)


class _Recording(Part):
    def __init__(self, run: Run, recorder: _Recorder) -> None:
        self.run, self.recorder, self.taken = run, recorder, 0

    def steps_known(self) -> None:
        grid = getattr(self.run.scheduler, "fine_grid", None)
        if grid is not None:
            self.run.clock.num_steps = grid.coarse[-1] + 1

    def step(self, commit: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scheduler, states = self.run.scheduler, self.recorder.states
        coarse = scheduler.fine_grid.coarse
        if self.taken >= len(coarse):
            raise ValueError("This pipeline goes over its timesteps more than once, so a correction cannot be fitted.")
        if timestep_number(timestep_of(scheduler, args, kwargs)) != scheduler.timesteps[self.taken].item():
            raise ValueError(
                "This pipeline begins inside its timesteps or leaves some out, so a correction cannot be fitted in its "
                "runs: calibrate with a pipeline that starts from noise."
            )
        stepped = commit(*args, **kwargs)
        if not states:
            sample = kwargs["sample"] if "sample" in kwargs else args[2]
            states.append(sample.to(torch.promote_types(sample.dtype, torch.float32)).clone())
        here = coarse[self.taken]
        self.taken += 1
        following = coarse[self.taken] if self.taken < len(coarse) else here + 1
        if following != here:
            states.append(exact_state(scheduler).clone())
        self.run.clock.step = following - 1  # the clock advances after this
        return stepped
