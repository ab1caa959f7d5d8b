"""Sampling the rows of a paper table into image folders that go on where they were interrupted."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.efficient import remove
from iec.evaluation.bootstrap import MINIMUM_IMAGES
from iec.evaluation.class_labels import class_inputs
from iec.evaluation.image_folder import ImageFolder
from iec.evaluation.per_image import listed
from iec.evaluation.processes import ALONE, Share
from iec.evaluation.sampling import require_sampling, sample_to_folder
from iec.experiments.paper.tables import PaperTable
from iec.experiments.prepared import PlanFolders, prepared
from iec.experiments.settings import Setting, describe
from iec.method.noise import CALIBRATION_OFFSET
from iec.models.image_shape import image_shape
from iec.models.paper import PaperModel

#: Trajectories are calibrated in batches of at most this.
_CALIBRATION_BATCH = 16


def require_inputs(model: PaperModel, images: int, prompts: Sequence[str]) -> None:
    """Raise ValueError for too few images, captions that the model needs, or captions that it does not take."""
    if images < MINIMUM_IMAGES:
        raise ValueError(f"An interval needs at least {MINIMUM_IMAGES} images, but {images} were asked for.")
    if model.takes_prompts and not prompts:
        raise ValueError(f"{model.title} needs captions: give a file of them, one a line, with --captions.")
    if prompts and not model.takes_prompts:
        raise ValueError(f"{model.title} takes no captions: leave out --captions.")


@dataclass(frozen=True)
class PaperSampler:
    """Samples rows of one paper model.

    source: the folder or hub name of its weights, for the record. prompts: the captions, for a model that takes them.
    folder: where images and plans are kept, in folders named by their rows. share: as of `sample_to_folder`.
    Raises ValueError for settings that sampling would refuse.
    """

    pipe: DiffusionPipeline
    model: PaperModel
    source: str
    folder: Path
    images: int
    batch_size: int
    seed: int = 0
    prompts: tuple[str, ...] = ()
    share: Share = ALONE

    def __post_init__(self) -> None:
        require_inputs(self.model, self.images, self.prompts)
        require_sampling(self.pipe, self.images, self.model.num_steps, self.seed, self.batch_size, inputs=self.inputs())

    def inputs(self) -> dict[str, Any]:
        """What a call takes besides generators and steps: guidance, every class in turn, captions in turn."""
        return {**self._guidance(), **class_inputs(self.pipe, self._classes("all"), self.seed)}

    def row_folder(self, setting: Setting) -> Path:
        """Where the images of a row are."""
        return self.folder / "images" / _slug(setting.label)

    def sample(
        self,
        setting: Setting,
        on_images: Callable[[int], None] = lambda images: None,
        on_calibration: Callable[[int, int], None] = lambda done, total: None,
    ) -> ImageFolder:
        """The images of a row, or the rest of them; its plans are calibrated once.

        on_images(images): how many are there. on_calibration(done, total): of the plan that is being made.
        """
        plans = self.folder / "plans"
        folders = PlanFolders(
            plans / _slug(f"{describe(setting.technique)} T={setting.num_steps}"),
            plans / _slug(setting.label),
            self.folder / ".plan.lock",
        )
        used, correction = prepared(
            self.pipe,
            setting.technique,
            setting.correction,
            setting.num_steps,
            folders,
            self._calibration_inputs(),
            lambda stage, done, total: on_calibration(done, total),
            self.model.calibration,
            min(self.batch_size, _CALIBRATION_BATCH),
        )
        try:
            return sample_to_folder(
                self.pipe,
                self.row_folder(setting),
                self.images,
                setting.num_steps,
                model=self.source,
                seed=self.seed,
                batch_size=self.batch_size,
                technique=used,
                correction=correction,
                inputs=self.inputs(),
                share=self.share,
                on_progress=on_images,
            )
        finally:
            remove(self.pipe)

    def _calibration_inputs(self) -> Mapping[str, Any]:
        """As of `inputs`, with classes drawn from all: few trajectories would only see the first ones in turn."""
        drawn = class_inputs(self.pipe, self._classes("random"), CALIBRATION_OFFSET + self.seed)
        return {**self._guidance(), **listed(drawn, self.model.calibration)}

    def _guidance(self) -> dict[str, Any]:
        prompts = {"prompt": list(self.prompts)} if self.prompts else {}
        return {
            **{name: value for name, value in self.model.inputs.items() if name != "num_inference_steps"},
            **prompts,
        }

    def _classes(self, choice: str) -> str | None:
        return None if self.model.class_embedder is None else choice


def sample_table(
    table: PaperTable,
    sampler: PaperSampler,
    on_row: Callable[[Setting], None] = lambda setting: None,
    on_images: Callable[[int], None] = lambda images: None,
    on_calibration: Callable[[Setting, int, int], None] = lambda setting, done, total: None,
) -> dict[Setting, ImageFolder]:
    """The image folders of all rows, one after the other. on_images(images): of all rows together."""
    settings = [row.setting for system in table.systems for row in system]
    found: dict[Setting, ImageFolder] = {}
    for number, setting in enumerate(settings):
        on_row(setting)
        before = number * sampler.images
        found[setting] = sampler.sample(
            setting,
            lambda images, before=before: on_images(before + images),  # type: ignore[misc]
            lambda done, total, setting=setting: on_calibration(setting, done, total),  # type: ignore[misc]
        )
    return found


def differences(sampler: PaperSampler) -> list[str]:
    """What of a run differs from the paper's setting, one sentence each."""
    model, dtype = sampler.model, next(sampler.pipe.unet.parameters()).dtype
    found = []
    if sampler.images != model.images:
        found.append(f"{sampler.images:,} images per row; the paper has {model.images:,}.")
    if dtype != torch.float32:
        found.append(f"The network computes in {str(dtype).removeprefix('torch.')}.")
    if model.takes_prompts:
        size = image_shape(sampler.pipe)[1]
        found.append(f"Images of {size}x{size} in one dtype; the paper's table says 256x256, and its code autocasts.")
    if model.weights is not None:
        found.append(f"The weights are those of '{sampler.source}', as iec convert wrote them.")
    if model.class_embedder is not None:
        found.append("Every class in turn, so that all have as many images.")
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
