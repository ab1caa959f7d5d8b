"""Rows that are sampled once and kept: the same settings give the same row, and are never computed twice."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.evaluation.per_image import recorded
from iec.experiments.compared_model import load_compared
from iec.experiments.corrections import correction_settings
from iec.experiments.plans import Calibration, Plans, digest, technique_settings
from iec.experiments.results import ResultFolder, StoredRow
from iec.experiments.rows import NO_INPUTS, Sampled, sample_setting
from iec.experiments.samplers.sampled_with import noise_schedule, with_solver
from iec.experiments.samplers.sampling import PLAIN
from iec.experiments.settings import Setting
from iec.method.noise import CALIBRATION_OFFSET
from iec.models.loading import load_pipeline
from iec.runtime import network_of
from iec.storage.fingerprint import fingerprint


class Measurements:
    """The rows of one model in `folder`, with the plans that they need.

    model: as of `load_compared`; None for the embedded model. device: where it runs. inputs: as of `generate`.
    on_row(setting, seed, done): before each row; done says that it is there. on_images(images): after each batch.
    on_calibration(setting, done, total): while a plan is made.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        batch_size: int,
        calibration: Calibration,
        on_row: Callable[[Setting, int, bool], None] = lambda setting, seed, done: None,
        on_images: Callable[[int], None] = lambda images: None,
        on_calibration: Callable[[Setting, int, int], None] = lambda setting, done, total: None,
        model: str | None = None,
        device: str = "cpu",
        inputs: Mapping[str, Any] = NO_INPUTS,
    ) -> None:
        self.model, self.device, self.inputs = model, device, inputs
        self.dtype, self.batch_size, self.on_row, self.on_images = dtype, batch_size, on_row, on_images
        self.folder, self.rows = folder, ResultFolder(folder / "rows")
        self.plans = Plans(calibration, folder / "plans", on_calibration, storage="packed", inputs=inputs)

    def row(
        self, setting: Setting, images: int, seed: int, spacing: str = "quad", calibration: bool = False
    ) -> StoredRow:
        """The row of these settings, sampled if it is not there; calibration: as of `generate`."""
        pipe = self.pipeline(setting, spacing)
        drawn = seed + CALIBRATION_OFFSET if calibration else seed
        key = digest(self.settings(pipe, setting, images, drawn, spacing))
        found = self.rows.find(key)
        self.on_row(setting, seed, found is not None)
        if found is not None:
            self.on_images(images)
            return found
        sampled = sample_setting(
            pipe, setting, images, seed, self.batch_size, self.plans, self.on_images, calibration, self.inputs
        )
        row = StoredRow(sampled.images, _record(setting, drawn, sampled, pipe.device.type))
        self.rows.add(key, row)
        return row

    def find(
        self, setting: Setting, images: int, seed: int, spacing: str = "quad", calibration: bool = False
    ) -> StoredRow | None:
        """The row of these settings if it is there, as `row` would sample it; nothing is sampled or calibrated."""
        pipe = self.pipeline(setting, spacing)
        if not self.plans.made(pipe, setting):
            return None
        drawn = seed + CALIBRATION_OFFSET if calibration else seed
        return self.rows.find(digest(self.settings(pipe, setting, images, drawn, spacing)))

    def pipeline(self, setting: Setting, spacing: str = "quad") -> DiffusionPipeline:
        """The model with the setting's solver."""
        dtype = getattr(torch, self.dtype)
        if self.model is None:
            pipe = load_pipeline(dtype=dtype, device=self.device, spacing=spacing)
        else:
            pipe = load_compared(self.model, dtype, spacing, self.device)
        return with_solver(pipe, setting.sampler)

    def settings(
        self, pipe: DiffusionPipeline, setting: Setting, images: int, seed: int, spacing: str
    ) -> dict[str, Any]:
        """Everything that decides a row's bytes; what is as the embedded model's DDIM on a CPU has it adds nothing."""
        own: dict[str, Any] = {} if setting.sampler == PLAIN else {"sampler": setting.sampler.to_dict()}
        if self.model is not None:
            own["noise_schedule"] = noise_schedule(pipe.scheduler.config)
        if pipe.device.type != "cpu":
            own["device"] = pipe.device.type
        if self.inputs:
            own["inputs"] = recorded(self.inputs)
        return {
            "weights": fingerprint(network_of(pipe)),
            "scheduler": spacing,
            "dtype": self.dtype,
            "num_steps": setting.num_steps,
            "technique": technique_settings(setting.technique),
            "plan": self.plans.digest(pipe, setting),
            "correction": correction_settings(setting.correction, setting.num_steps),
            **({"correction_plan": fitted} if (fitted := self.plans.correction_digest(pipe, setting)) else {}),
            "seed": seed,
            "images": images,
            "batch_size": self.batch_size,
            "torch": torch.__version__,
            **own,
        }


def _record(setting: Setting, seed: int, sampled: Sampled, device: str) -> dict[str, Any]:
    return {
        "setting": setting.label,
        "seed": seed,
        "images": len(sampled.images),
        "full_evaluations": sampled.full,
        "cached_evaluations": sampled.cached,
        "cost": sampled.cost,
        "model_bytes": sampled.model_bytes,
        "seconds": sampled.seconds,
        "processor_seconds": sampled.processor_seconds,
        "peak_memory_mb": sampled.peak_memory_mb,
        "threads": torch.get_num_threads(),
        "device": device,
    }
