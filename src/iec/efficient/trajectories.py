"""The full-precision trajectories of a pipeline, over which everything is calibrated."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.efficient.lockstep import run_together
from iec.method.noise import CALIBRATION_OFFSET, image_generator
from iec.runtime import Participant, attach, call_parameters, detach

_NAME = "calibration"


class Trajectories:
    """`samples` runs of `pipe`, the same whenever they are run: run i depends on (seed + 2000, i) alone.

    inputs: further arguments of the pipeline's call; of a list, each run takes one entry in turn, as of prompts.
    Raises ValueError or TypeError for bad settings, or for inputs that the pipeline does not take, or needs and did not
    get.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        num_steps: int,
        samples: int = 64,
        batch_size: int = 16,
        seed: int = 0,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("num_steps", num_steps), ("samples", samples), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, but is {value!r}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}.")
        image_generator(CALIBRATION_OFFSET + seed, samples - 1)  # refuses a seed outside its range
        self.num_steps, self.samples, self.batch_size, self.seed = num_steps, samples, batch_size, seed
        self._calls = TrajectoryCalls(pipe, num_steps, dict(inputs or {}))

    def run(self, on_progress: Callable[[int, int], None] = lambda done, total: None, start: int = 0) -> None:
        """Run them all, batch by batch, each run with a clock; `on_progress(done, total)` after every batch.

        start: how many were run before, in whole batches.
        """
        pipe = self._calls.pipe
        with self._clocked():
            for first in range(start, self.samples, self.batch_size):
                generators = self._generators(first)
                self._calls.sample(pipe, generators, first)
                on_progress(first + len(generators), self.samples)

    def run_together(self, on_meeting: Callable[[], None]) -> None:
        """Run them all at once: one batch at a time goes on, until it waits for the others (`wait_for_all`).

        on_meeting: called whenever all wait. Every batch has a copy of the pipeline, which shares all components but
        the scheduler.
        """
        with self._clocked():
            firsts = range(0, self.samples, self.batch_size)
            sample, pipe = self._calls.sample, self._calls.pipe
            run_together(
                [functools.partial(sample, _own(pipe), self._generators(first), first) for first in firsts], on_meeting
            )

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        """While entered, every call of the pipeline or of a copy of it has a clock."""
        attach(self._calls.pipe, _NAME, Participant())
        try:
            yield
        finally:
            detach(self._calls.pipe, _NAME)

    def _generators(self, first: int) -> list[torch.Generator]:
        """Those of the batch that begins with trajectory `first`."""
        indices = range(first, min(first + self.batch_size, self.samples))
        return [image_generator(CALIBRATION_OFFSET + self.seed, i) for i in indices]


def _own(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """`pipe` with a scheduler of its own, so that it can be called while `pipe` is."""
    own = copy.copy(pipe)
    own.scheduler = copy.deepcopy(pipe.scheduler)
    return own


class TrajectoryCalls:
    """The calls of one pipeline."""

    def __init__(self, pipe: DiffusionPipeline, num_steps: int, inputs: dict[str, Any]) -> None:
        self.pipe, self.inputs = pipe, inputs
        self.given: dict[str, Any] = {"num_inference_steps": num_steps}
        if "output_type" in inspect.signature(type(pipe).__call__).parameters:
            # Decoding latents would cost more than a step, and nothing of it is calibrated; not every dtype has a
            # form in NumPy.
            self.given["output_type"] = "latent" if getattr(pipe, "vae", None) is not None else "pt"
        self.parameters = call_parameters(pipe, inputs, {*self.given, "generator"})
        for name, value in inputs.items():
            if isinstance(value, list) and not value:
                raise ValueError(f"'{name}' is an empty list: there is no calibration data.")

    def sample(self, pipe: DiffusionPipeline, generators: list[torch.Generator], start: int) -> None:
        """One call of `pipe`, for the trajectories from `start` on, one per generator."""
        count = len(generators)
        arguments = {**self.given, "generator": generators}
        for name, value in self.inputs.items():
            per_trajectory = [value] if isinstance(value, str) else value
            if isinstance(per_trajectory, list):
                value = [per_trajectory[(start + i) % len(per_trajectory)] for i in range(count)]
            arguments[name] = value
        if "batch_size" in self.parameters:
            arguments["batch_size"] = count
        pipe(**arguments)
