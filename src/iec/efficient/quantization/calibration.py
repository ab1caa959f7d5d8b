"""Calibration: full-precision trajectories of any pipeline, whose activations are counted as they pass (spec 4.3).

Unlike the released code, which holds the inputs of every step and quantizes layer after layer, every layer is
calibrated on its full-precision input, so that one pass over the trajectories is enough and nothing is held.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.statistics import ActivationStatistics, recording
from iec.method.noise import CALIBRATION_OFFSET, image_generator
from iec.runtime import Participant, attach, detach, network_of

_NAME = "calibration"


def record_trajectories(
    pipe: DiffusionPipeline,
    config: QuantizationConfig,
    num_steps: int,
    samples: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ActivationStatistics:
    """The activations of `samples` full-precision trajectories; trajectory i depends on (seed + 2000, i) alone.

    inputs: further arguments of the pipeline's call; of a list, each trajectory takes one entry in turn, as of prompts.
    on_progress(done, total): called after every batch, in trajectories.
    Raises ValueError or TypeError for settings or a network that cannot be calibrated, before anything is sampled.
    """
    for name, value in (("num_steps", num_steps), ("samples", samples), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, but is {value!r}.")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
    network = network_of(pipe)
    covered = coverage(network, config)
    statistics = ActivationStatistics(covered)
    calls = _Calls(pipe, num_steps, dict(inputs or {}))
    attach(pipe, _NAME, Participant())
    try:
        with recording(network, statistics):
            for start in range(0, samples, batch_size):
                indices = range(start, min(start + batch_size, samples))
                calls.sample([image_generator(CALIBRATION_OFFSET + seed, index) for index in indices], start)
                on_progress(indices.stop, samples)
    finally:
        detach(pipe, _NAME)
    return statistics


class _Calls:
    """The calls of one pipeline. Raises ValueError for inputs that it does not take, or needs and did not get."""

    def __init__(self, pipe: DiffusionPipeline, num_steps: int, inputs: dict[str, Any]) -> None:
        self.pipe, self.inputs = pipe, inputs
        self.parameters = inspect.signature(type(pipe).__call__).parameters
        self.given: dict[str, Any] = {"num_inference_steps": num_steps}
        if "output_type" in self.parameters:
            # Decoding latents would cost more than a step, and nothing of it is calibrated.
            self.given["output_type"] = "latent" if getattr(pipe, "vae", None) is not None else "np"
        for name in inputs:
            if name not in self.parameters:
                raise ValueError(f"{type(pipe).__name__} takes no '{name}'.")
            if isinstance(inputs[name], list) and not inputs[name]:
                raise ValueError(f"'{name}' is an empty list: there is no calibration data.")
        for name, parameter in self.parameters.items():
            required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if (required or name == "prompt") and name not in {*inputs, *self.given, "self", "generator"}:
                raise ValueError(f"{type(pipe).__name__} needs '{name}', which was not given.")

    def sample(self, generators: list[torch.Generator], start: int) -> None:
        """One call, for the trajectories from `start` on, one per generator."""
        count = len(generators)
        arguments = {**self.given, "generator": generators}
        for name, value in self.inputs.items():
            per_trajectory = [value] if isinstance(value, str) else value
            if isinstance(per_trajectory, list):
                value = [per_trajectory[(start + i) % len(per_trajectory)] for i in range(count)]
            arguments[name] = value
        if "batch_size" in self.parameters:
            arguments["batch_size"] = count
        self.pipe(**arguments)
