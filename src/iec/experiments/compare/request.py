"""What a comparison compares, checked before anything is sampled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient import DeepCacheConfig, QuantizationConfig
from iec.efficient.caching.deepcache import require_cacheable
from iec.evaluation.bootstrap import MINIMUM_IMAGES
from iec.evaluation.cost import EvaluationCost, evaluation_cost
from iec.evaluation.generate import generate
from iec.evaluation.metrics.extractor import Titles
from iec.evaluation.network_call import network_call
from iec.evaluation.per_image import listed
from iec.experiments.corrections import CALIBRATED, FITTED_IEC, Correction, FittedCorrection, describe_correction
from iec.experiments.fits import Fit
from iec.experiments.measuring import Measurements
from iec.experiments.plans import Calibration
from iec.experiments.rows import cached_evaluation_cost
from iec.experiments.settings import Setting, Technique
from iec.method.adams import AdamsConfig
from iec.method.config import IECConfig
from iec.method.ddim import Spacing, spaced_timesteps
from iec.method.steps import select_steps
from iec.runtime import network_of

#: What costs no evaluation, and the published correction as it is and at its best.
DEFAULT_CORRECTIONS: tuple[Correction, ...] = (CALIBRATED, AdamsConfig(), IECConfig.paper(), FITTED_IEC)
_TUNING_IMAGES, _ERROR_IMAGES = 256, 64
_CALIBRATION = Calibration()


@dataclass(frozen=True)
class Request:
    """The settings of a comparison.

    technique: what makes the model efficient; None compares correction on the model as it is. corrections: the
    correctors. model, device, inputs: as of `Measurements`. calibration: how plans are made. features: what judges,
    `cifar` or `inception`.
    """

    technique: Technique | None = None
    corrections: tuple[Correction, ...] = DEFAULT_CORRECTIONS
    num_steps: int = 20
    images: int = 500
    seed: int = 0
    batch_size: int = 32
    dtype: str = "float32"
    spacing: Spacing = "quad"
    model: str | None = None
    calibration: Calibration = _CALIBRATION
    device: str = "cpu"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    features: str = "cifar"

    @property
    def plain(self) -> Setting:
        """The model that is corrected, without correction."""
        return Setting(self.num_steps, self.technique)

    @property
    def corrected(self) -> tuple[Setting, ...]:
        """The same with each corrector."""
        return tuple(Setting(self.num_steps, self.technique, correction) for correction in self.corrections)

    @property
    def titles(self) -> Titles:
        """What the figures are called: never FID or KID, which are of 10,000 images and more."""
        return Titles.of(self.features)

    @property
    def tuning_images(self) -> int:
        """How many images of the calibration seed choose a parameter."""
        return min(self.images, _TUNING_IMAGES)

    @property
    def error_images(self) -> int:
        """Over how many images the error of the state is measured."""
        return min(self.images, _ERROR_IMAGES)

    def measurements(self, folder: Path, **callbacks: Any) -> Measurements:
        """The rows of this comparison, kept in `folder`; the callbacks are those of `Measurements`."""
        return Measurements(
            folder,
            self.dtype,
            self.batch_size,
            self.calibration,
            model=self.model,
            device=self.device,
            inputs=self.inputs,
            **callbacks,
        )

    def require_valid(self, pipe: DiffusionPipeline) -> EvaluationCost:
        """The unit of cost of `pipe`, which is the model without anything applied.

        Raises ValueError or TypeError, in one sentence, for settings that cannot be compared.
        """
        if self.images < MINIMUM_IMAGES:
            raise ValueError(f"A comparison needs at least {MINIMUM_IMAGES} images per row, but got {self.images}.")
        if self.calibration.samples < 1:
            raise ValueError(f"A plan needs at least 1 trajectory, but got {self.calibration.samples}.")
        if not self.corrections:
            raise ValueError("There is no corrector to compare: give at least one.")
        # Refuses what it cannot sample.
        generate(pipe, self.images, self.num_steps, self.seed, self.batch_size, inputs=self.inputs)
        spaced_timesteps(self.num_steps, self.spacing)
        self._require_fits(pipe)
        cache = cache_of(self.technique)
        if cache is not None:
            require_cacheable(network_of(pipe), cache)
            cache.require_fit(self.num_steps)
        for setting, correction in zip(self.corrected, self.corrections, strict=True):
            if not isinstance(correction, IECConfig):
                continue
            select_steps(correction.steps, self.num_steps)
            if not any(correction.relaxations) or setting.evaluations() == self.plain.evaluations():
                raise ValueError(
                    f"The corrector '{describe_correction(correction)}' corrects nothing here: choose a "
                    "relaxation above 0, and steps that are computed in full."
                )
        if cache is None:
            return evaluation_cost(network_of(pipe), network_call(pipe, self.num_steps, self.inputs))
        return cached_evaluation_cost(pipe, DeepCacheConfig(2, cache.branch), self.num_steps, self.inputs)

    def _require_fits(self, pipe: DiffusionPipeline) -> None:
        chosen = self.calibration
        inputs = listed(self.inputs, chosen.samples)
        for correction in self.corrections:
            if isinstance(correction, FittedCorrection):
                Fit(correction, self.num_steps, inputs, chosen.samples, chosen.batch_size, chosen.seed).require_valid(
                    pipe
                )


def cache_of(technique: Technique | None) -> DeepCacheConfig | None:
    """The cache of a technique, if it has one."""
    if technique is None or isinstance(technique, QuantizationConfig):
        return None
    return technique if isinstance(technique, DeepCacheConfig) else technique.cache
