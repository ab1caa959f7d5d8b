"""Sampling many images, reproducibly: image i depends on (seed, i) alone, and is always in batch i // batch_size."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.evaluation.per_image import of_batch
from iec.method.config import IECConfig
from iec.method.noise import CALIBRATION_OFFSET, IMAGES_PER_SEED, MAX_SEED, image_generator
from iec.method.summary import Summary
from iec.pipelines import enabled, summary
from iec.pipelines.enabling import Correction
from iec.runtime import call_parameters


@dataclass(frozen=True)
class Batch:
    """The images of one batch, uint8 [B, 3, H, W], without padding; `summary` and `seconds` are of the whole batch."""

    start: int
    images: torch.Tensor
    summary: Summary
    seconds: float

    @property
    def indices(self) -> range:
        """The indices of the images."""
        return range(self.start, self.start + len(self.images))


def generate(
    pipe: DiffusionPipeline,
    num_images: int,
    num_steps: int,
    seed: int = 0,
    batch_size: int = 64,
    correction: Correction | None = None,
    skip: frozenset[int] = frozenset(),
    inputs: Mapping[str, Any] | None = None,
    calibration: bool = False,
) -> Iterator[Batch]:
    """Sample `num_images` images, batch by batch; `skip` names batches that are done already.

    The last batch is padded with the images that would come next, so that every batch is computed alike.
    inputs: further arguments of the pipeline's call; a prompt is repeated for every image, of a list image i takes
    entry i, in turn, and a `PerImage` says what each takes.
    calibration: draw the images that no comparison judges, those of seed + 2000.
    Raises ValueError or TypeError for bad settings, or for inputs that the pipeline needs and did not get, before
    anything is sampled.
    """
    for name, value, least in (
        ("num_images", num_images, 1),
        ("num_steps", num_steps, 1),
        ("batch_size", batch_size, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, but is {value!r}.")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}.")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must lie in 0..{MAX_SEED}, but is {seed}.")
    num_batches = math.ceil(num_images / batch_size)
    if num_batches * batch_size > IMAGES_PER_SEED:
        raise ValueError(f"At most {IMAGES_PER_SEED} images can be drawn from one seed: use another seed for more.")
    arguments = call_arguments(pipe, batch_size, dict(inputs or {}))
    drawn = seed + CALIBRATION_OFFSET if calibration else seed
    return _batches(pipe, num_images, num_steps, drawn, batch_size, correction, skip, arguments)


def _batches(
    pipe: DiffusionPipeline,
    num_images: int,
    num_steps: int,
    seed: int,
    batch_size: int,
    correction: Correction | None,
    skip: frozenset[int],
    arguments: dict[str, Any],
) -> Iterator[Batch]:
    # Without a correction the run is still followed, for its evaluations and its clock.
    config = IECConfig(num_iterations=0) if correction is None else correction
    for number in range(math.ceil(num_images / batch_size)):
        if number in skip:
            continue
        start = number * batch_size
        generators = [image_generator(seed, start + i) for i in range(batch_size)]
        began = time.perf_counter()
        with enabled(pipe, config):
            output = pipe(
                **of_batch(arguments, range(start, start + batch_size)),
                generator=generators,
                num_inference_steps=num_steps,
                output_type="np",
            )
            record = summary(pipe)
        seconds = time.perf_counter() - began
        images = _to_uint8(output.images)
        yield Batch(start, images[: num_images - start], record, seconds)


# What `_batches` gives to every call.
_GIVEN = ("generator", "num_inference_steps", "output_type")


def call_arguments(pipe: DiffusionPipeline, batch_size: int, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of every call for `batch_size` images, of which `of_batch` makes those of one batch.

    Raises ValueError, by name, for an input that the pipeline needs and did not get, or does not take.
    """
    parameters = call_parameters(pipe, inputs, _GIVEN)
    for name, value in inputs.items():
        if isinstance(value, list) and not value:
            raise ValueError(f"'{name}' is an empty list: every image needs an entry.")
    if "prompt" not in inputs and "batch_size" in parameters:
        inputs["batch_size"] = batch_size
    return inputs


def _to_uint8(images: Any) -> torch.Tensor:
    """float [B, H, W, C] in [0, 1] to uint8 [B, C, H, W], rounded and without a watermark."""
    scaled = torch.as_tensor(images).float().mul(255).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 3, 1, 2).contiguous()
