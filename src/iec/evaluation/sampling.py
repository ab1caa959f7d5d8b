"""Sampling into a folder: what `iec sample` does."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.efficient import DeepCacheConfig, apply
from iec.evaluation.corrections import INNER_FOLDER, Correction, recorded_correction, require_correction
from iec.evaluation.cost import evaluation_cost
from iec.evaluation.generate import Batch, generate
from iec.evaluation.image_folder import ImageFolder
from iec.evaluation.network_call import network_call
from iec.evaluation.per_image import recorded
from iec.evaluation.processes import ALONE, Share
from iec.pipelines import CorrectionPlan
from iec.runtime import network_of
from iec.runtime.sampler import Sampler
from iec.storage.fingerprint import fingerprint, folder_digest


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
    technique: DeepCacheConfig | Path | None = None,
    correction: Correction | Path | None = None,
    inputs: Mapping[str, Any] | None = None,
    share: Share = ALONE,
    on_batch: Callable[[Batch], None] = lambda batch: None,
    on_progress: Callable[[int], None] = lambda images: None,
) -> ImageFolder:
    """Sample `num_images` images into `folder`, or the rest of them where an earlier run was interrupted.

    model, spacing: as they were loaded, for the record. technique: a cache, or the folder of a calibrated plan.
    correction: also a plan or its folder. inputs: as of `generate`, such as prompts. share: which batches this process
    takes, of several that are called alike and write to one folder; the last of them to finish sets the folder's
    `complete`.
    on_progress(images): how many are there, of all processes, at the start and after every batch.
    Raises ValueError or TypeError for bad settings, an unwritable folder, or a folder of another run, before anything
    is sampled.
    """
    if isinstance(correction, Path):
        correction = CorrectionPlan.from_pretrained(correction)
    require_sampling(pipe, num_images, num_steps, seed, batch_size, correction, inputs)
    network = network_of(pipe)
    weights = fingerprint(network)
    call, calls = network_call(pipe, num_steps, inputs or {}), _count_calls(pipe.scheduler, num_steps)
    if isinstance(technique, DeepCacheConfig):
        technique.full_steps(num_steps)
    if technique is not None:
        apply(pipe, technique)
    if isinstance(correction, CorrectionPlan):
        correction.require_fits(pipe)
    settings = {
        "model": model,
        "weights": weights,
        "num_steps": num_steps,
        "seed": seed,
        "batch_size": batch_size,
        "spacing": spacing,
        "cache": _cache_settings(technique) if isinstance(technique, DeepCacheConfig) else None,
        "plan": folder_digest(technique, without=INNER_FOLDER) if isinstance(technique, Path) else None,
        "correction": recorded_correction(correction, num_steps),
        **recorded(inputs or {}),
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "device": next(network.parameters()).device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    output = ImageFolder(folder, settings, num_images, evaluation_cost(network, call, calls))
    done = output.done()
    on_progress(output.count(done))
    others = {number for number in range(output.num_batches) if not share.takes(number)}
    skipped = done | others
    for batch in generate(pipe, num_images, num_steps, seed, batch_size, correction, skipped, inputs):
        output.add(batch)
        on_batch(batch)
        on_progress(output.count(done | output.recorded()))
    output.finish()
    return output


def require_sampling(
    pipe: DiffusionPipeline,
    num_images: int,
    num_steps: int,
    seed: int = 0,
    batch_size: int = 64,
    correction: Correction | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Raise ValueError or TypeError for settings that `sample_to_folder` refuses, before a folder is touched."""
    # Nothing is sampled before the first `next`.
    generate(pipe, num_images, num_steps, seed, batch_size, correction, inputs=inputs)
    require_correction(pipe, correction, num_steps, inputs)


def _cache_settings(config: DeepCacheConfig) -> dict[str, Any]:
    """As JSON values; what is off is left out, so that folders from before there was a setting go on."""
    return {name: value for name, value in asdict(config).items() if value is not False}


def _count_calls(scheduler: Any, num_steps: int) -> int:
    """How many times a run of `num_steps` steps evaluates the network: PLMS does so once more."""
    sampler = Sampler.of(scheduler, num_steps)
    return num_steps if sampler is None else len(sampler.timesteps)
