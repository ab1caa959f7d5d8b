"""Sampling into a folder: what `iec sample` does."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.efficient import DeepCacheConfig, apply
from iec.evaluation.cost import EvaluationCost, evaluation_cost
from iec.evaluation.generate import Batch, generate
from iec.evaluation.image_folder import ImageFolder
from iec.method.config import IECConfig
from iec.method.steps import select_steps
from iec.runtime import network_of
from iec.storage.fingerprint import fingerprint


def sample_to_folder(
    pipe: DiffusionPipeline,
    folder: str | Path,
    num_images: int,
    num_steps: int,
    *,
    model: str = "embedded",
    spacing: str = "scheduler",
    seed: int = 0,
    batch_size: int = 64,
    cache: DeepCacheConfig | None = None,
    correction: IECConfig | None = None,
    prompt: str | None = None,
    on_start: Callable[[int], None] = lambda images: None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
) -> ImageFolder:
    """Sample `num_images` images into `folder`, or the rest of them where an earlier run was interrupted.

    model, spacing: as they were loaded, for the record. on_start(images): how many are there already.
    Raises ValueError or TypeError for bad settings, an unwritable folder, or a folder of another run, before anything
    is sampled.
    """
    if cache is not None:
        cache.full_steps(num_steps)
        apply(pipe, cache)
    if correction is not None and correction.num_iterations:
        select_steps(correction.steps, num_steps)
    network = network_of(pipe)
    settings = {
        "model": model,
        "weights": fingerprint(network),
        "num_steps": num_steps,
        "seed": seed,
        "batch_size": batch_size,
        "spacing": spacing,
        "cache": None if cache is None else asdict(cache),
        "correction": None if correction is None else correction.to_dict(),
        "prompt": prompt,
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "device": str(next(network.parameters()).device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    inputs: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    # Bad settings are refused here, before the folder is touched; nothing is sampled before the first `next`.
    generate(pipe, num_images, num_steps, seed, batch_size, correction, inputs=inputs)
    output = ImageFolder(folder, settings, num_images, _cost(network))
    on_start(sum(len(output.images_of(number)) for number in output.done))
    for batch in generate(pipe, num_images, num_steps, seed, batch_size, correction, output.done, inputs):
        output.add(batch)
        on_batch(batch)
    return output


def _cost(network: torch.nn.Module) -> EvaluationCost | None:
    """Only the input of an unconditional network can be made up; of any other the cost is not measured."""
    return evaluation_cost(network) if type(network).__name__ == "UNet2DModel" else None
