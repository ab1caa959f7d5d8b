"""The error of the state at every sampling step, measured once for each setting and kept."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from iec.evaluation.generate import call_arguments
from iec.evaluation.metrics.latent import latent_errors, recorded_latents
from iec.evaluation.per_image import of_batch
from iec.experiments.measuring import Measurements
from iec.experiments.plans import digest
from iec.experiments.results import TensorFolder
from iec.experiments.settings import Setting
from iec.experiments.tables import ExperimentTable
from iec.method.config import IECConfig
from iec.method.noise import image_generator
from iec.pipelines import enabled
from iec.pipelines.enabling import Correction


class LatentErrors:
    """The errors of settings against full precision without correction at the same seeds, as `table` samples.

    folder: where they are kept. measurements: the plans and the callbacks are its own.
    """

    def __init__(self, table: ExperimentTable, folder: Path, measurements: Measurements) -> None:
        self.table, self.measurements = table, measurements
        self.errors = TensorFolder(folder / "latent-errors", "errors")
        self._reference: list[torch.Tensor] = []

    def row(self, setting: Setting) -> torch.Tensor:
        """The errors float64 [T, n] of the setting, measured if they are not there."""
        table, told = self.table, self.measurements
        pipe = told.pipeline(setting, table.spacing)
        key = self._key(pipe, setting)
        found = self.errors.find(key)
        if found is None and not self._reference:
            told.on_row(table.setting(), table.seed, False)
            self._reference = self._states(pipe, table.setting())
        told.on_row(setting, table.seed, found is not None)
        if found is not None:
            told.on_images(table.images)
            return found[0]
        correction = told.plans.correction(pipe, setting)
        with told.plans.applied(pipe, setting):
            states = self._states(pipe, setting, correction)
        pairs = zip(states, self._reference, strict=True)
        errors = torch.cat([latent_errors(list(ours), list(reference)) for ours, reference in pairs], dim=1)
        self.errors.add(key, errors, {"setting": setting.label, "seed": table.seed, "images": table.images})
        return errors

    def find(self, setting: Setting) -> torch.Tensor | None:
        """The errors of the setting if they are there; nothing is sampled or calibrated."""
        pipe = self.measurements.pipeline(setting, self.table.spacing)
        if not self.measurements.plans.made(pipe, setting):
            return None
        found = self.errors.find(self._key(pipe, setting))
        return None if found is None else found[0]

    def _states(
        self, pipe: DiffusionPipeline, setting: Setting, correction: Correction | None = None
    ) -> list[torch.Tensor]:
        """The states float32 [T, B, C, H, W] of every batch."""
        # Without a correction the run is still followed, so that every step's state can be recorded alike.
        config = IECConfig(num_iterations=0) if correction is None else correction
        size, found = self.table.batch_size, []
        arguments = call_arguments(pipe, size, dict(self.measurements.inputs))
        for start in range(0, self.table.images, size):
            indices, count = range(start, start + size), min(size, self.table.images - start)
            generators = [image_generator(self.table.seed, index) for index in indices]
            with enabled(pipe, config), recorded_latents(pipe) as states:
                pipe(
                    **of_batch(arguments, indices),
                    generator=generators,
                    num_inference_steps=setting.num_steps,
                    output_type="np",
                )
                found.append(torch.stack(states)[:, :count])
            self.measurements.on_images(count)
        return found

    def _key(self, pipe: DiffusionPipeline, setting: Setting) -> str:
        table = self.table
        return digest(self.measurements.settings(pipe, setting, table.images, table.seed, table.spacing))
