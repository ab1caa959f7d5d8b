"""The calibrated plans of one model: made when a row first needs one, kept in memory and, if wanted, in a folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient import (
    CacheQuantPlan,
    DeepCacheConfig,
    DeepCachePlan,
    QuantizationPlan,
    apply,
    calibrate,
    load_plan,
    remove,
)
from iec.efficient.applying import Technique as Applicable
from iec.efficient.quantization.layers import Storage
from iec.evaluation.per_image import listed, recorded
from iec.experiments.corrections import FittedCorrection, correction_settings
from iec.experiments.fits import Fit
from iec.experiments.settings import Setting, Technique, quantizes
from iec.method.adams import AdamsConfig
from iec.method.config import IECConfig
from iec.pipelines import CorrectionPlan
from iec.runtime import network_of
from iec.runtime.sampler import Sampler
from iec.storage.fingerprint import fingerprint, folder_digest
from iec.storage.plan_files import require_model

CalibratedPlan = QuantizationPlan | CacheQuantPlan | DeepCachePlan
#: Told which setting is being calibrated, how much of it is done, and how much there is.
Progress = Callable[[Setting, int, int], None]
#: Where the weights are stored does not change what a model computes.
_STORAGE = ("storage", "keep_original")


@dataclass(frozen=True)
class Calibration:
    """From how many trajectories plans are made, in which batches, and from which seed."""

    samples: int = 64
    batch_size: int = 16
    seed: int = 0


class Plans:
    """What `apply` takes for each setting.

    folder: where plans are kept between runs, one folder each, named by a digest of everything they depend on.
    storage: how quantized weights are stored while in use; None: as the technique says. inputs: as of `generate`.
    """

    def __init__(
        self,
        calibration: Calibration = Calibration(),
        folder: Path | None = None,
        on_progress: Progress = lambda setting, done, total: None,
        storage: Storage | None = None,
        inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.calibration, self.folder, self.on_progress, self.storage = calibration, folder, on_progress, storage
        self.inputs = inputs
        self._made: dict[str, CalibratedPlan] = {}
        self._corrections: dict[str, CorrectionPlan] = {}

    @contextmanager
    def applied(self, pipe: DiffusionPipeline, setting: Setting) -> Iterator[None]:
        """While entered, `pipe` runs with the setting's technique."""
        technique = self.find(pipe, setting)
        try:
            if technique is not None:
                apply(pipe, technique, self.storage if quantizes(setting.technique) else None)
            yield
        finally:
            remove(pipe)

    def find(self, pipe: DiffusionPipeline, setting: Setting) -> Applicable | None:
        """What `apply` takes for the setting: None for the bare model, else settings or a plan, calibrated if new.

        `pipe` must have nothing applied.
        """
        technique = setting.technique
        if technique is None or (isinstance(technique, DeepCacheConfig) and not needs_plan(technique)):
            return technique
        key = self.key(pipe, setting)
        if key not in self._made:
            self._made[key] = self._load_or_calibrate(pipe, setting, key)
        return self._made[key]

    def made(self, pipe: DiffusionPipeline, setting: Setting) -> bool:
        """Whether the setting can be used at once, without a calibration."""
        keys = []
        if setting.technique is not None and needs_plan(setting.technique):
            keys.append(self.key(pipe, setting))
        if isinstance(setting.correction, FittedCorrection):
            keys.append(self.correction_key(pipe, setting))
        known = {*self._made, *self._corrections}
        return all(key in known or (self.folder is not None and (self.folder / key).exists()) for key in keys)

    def correction(self, pipe: DiffusionPipeline, setting: Setting) -> IECConfig | AdamsConfig | CorrectionPlan | None:
        """What `iec.enable` takes for the setting; a plan is fitted if it is new. `pipe` must have nothing applied."""
        correction = setting.correction
        if not isinstance(correction, FittedCorrection):
            return correction
        key = self.correction_key(pipe, setting)
        if key not in self._corrections:
            self._corrections[key] = self._load_or_fit(pipe, setting, correction, key)
        return self._corrections[key]

    def correction_key(self, pipe: DiffusionPipeline, setting: Setting) -> str:
        """A digest of everything that the setting's correction plan depends on, its technique's numbers included."""
        correction = correction_settings(setting.correction, setting.num_steps)
        return f"correction-{digest({**self._dependencies(pipe, setting), 'correction': correction})}"

    def _load_or_fit(
        self, pipe: DiffusionPipeline, setting: Setting, correction: FittedCorrection, key: str
    ) -> CorrectionPlan:
        if self.folder is not None and (self.folder / key).exists():
            return CorrectionPlan.from_pretrained(self.folder / key)
        chosen = self.calibration
        inputs = listed(self.inputs, chosen.samples)
        fit = Fit(correction, setting.num_steps, inputs, chosen.samples, chosen.batch_size, chosen.seed)
        with self.applied(pipe, setting):
            plan = fit.plan(pipe, lambda done, total: self.on_progress(setting, done, total))
        if self.folder is not None:
            plan.save_pretrained(self.folder / key)
        return plan

    def digest(self, pipe: DiffusionPipeline, setting: Setting) -> str | None:
        """A digest of the numbers in the setting's plan; None where it needs none."""
        plan = self.find(pipe, setting)
        if plan is None or isinstance(plan, DeepCacheConfig):
            return None
        if self.folder is None:
            raise ValueError("Only a plan that is kept in a folder has a digest.")
        return folder_digest(self.folder / self.key(pipe, setting), "*.safetensors")

    def correction_digest(self, pipe: DiffusionPipeline, setting: Setting) -> str | None:
        """A digest of the numbers in the setting's correction plan; None where nothing is fitted."""
        if not isinstance(setting.correction, FittedCorrection):
            return None
        if self.folder is None:
            raise ValueError("Only a plan that is kept in a folder has a digest.")
        self.correction(pipe, setting)
        return folder_digest(self.folder / self.correction_key(pipe, setting), "*.safetensors")

    def keep(self, pipe: DiffusionPipeline, plan: CalibratedPlan) -> None:
        """Use a plan that was made before. Raises ValueError where `pipe` is another model."""
        require_model(network_of(pipe), plan.model)
        self._made[self.key(pipe, Setting(plan.num_steps, plan.config))] = plan

    def key(self, pipe: DiffusionPipeline, setting: Setting) -> str:
        """A digest of everything that the setting's plan depends on."""
        assert setting.technique is not None
        return digest(self._dependencies(pipe, setting))

    def _dependencies(self, pipe: DiffusionPipeline, setting: Setting) -> dict[str, Any]:
        network, device = network_of(pipe), pipe.device.type
        scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
        return {
            "weights": fingerprint(network),
            "dtype": str(next(network.parameters()).dtype),
            "num_steps": setting.num_steps,
            "technique": technique_settings(setting.technique),
            "calibration": asdict(self.calibration),
            "scheduler": {"class": type(pipe.scheduler).__name__, **scheduler},
            **({} if device == "cpu" else {"device": device}),
            **({"inputs": recorded(self.inputs)} if self.inputs else {}),
        }

    def _load_or_calibrate(self, pipe: DiffusionPipeline, setting: Setting, key: str) -> CalibratedPlan:
        if self.folder is None:
            return self._calibrate(pipe, setting)
        folder = self.folder / key
        if not folder.exists():
            self._calibrate(pipe, setting).save_pretrained(folder)
        return load_plan(folder)

    def _calibrate(self, pipe: DiffusionPipeline, setting: Setting) -> CalibratedPlan:
        chosen, technique = self.calibration, setting.technique
        assert technique is not None
        return calibrate(
            pipe,
            technique,
            setting.num_steps,
            chosen.samples,
            chosen.batch_size,
            chosen.seed,
            listed(self.inputs, chosen.samples),
            on_progress=lambda done, total: self.on_progress(setting, done, total),
        )


def is_of_run(plan: CalibratedPlan, pipe: DiffusionPipeline, num_steps: int) -> bool:
    """Whether the plan is for runs of `pipe` over `num_steps` steps."""
    if plan.sampler is None:
        return plan.num_steps == num_steps
    return plan.sampler == Sampler.of(pipe.scheduler, num_steps)  # PLMS makes more calls than steps


def needs_plan(technique: Technique) -> bool:
    """Whether the technique has to be calibrated."""
    return not isinstance(technique, DeepCacheConfig) or technique.needs_plan


def technique_settings(technique: Technique | None) -> dict[str, Any] | None:
    """The settings that decide what a model computes, as JSON values; what is None or off is left out."""
    if technique is None:
        return None
    values = {name: value for name, value in asdict(technique).items() if value is not None and value is not False}
    kept = {name: value for name, value in values.items() if name not in _STORAGE}
    return {"kind": type(technique).__name__, **kept}


def digest(settings: dict[str, Any]) -> str:
    """20 hex digits over JSON values, the same for the same settings in any order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:20]
