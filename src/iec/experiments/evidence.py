"""The evidence on the efficient models: every system without and with correction, sampled once and kept."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.experiments.language import parse_technique
from iec.experiments.plans import Calibration, Plans, digest, technique_settings
from iec.experiments.results import ResultFolder, StoredRow
from iec.experiments.rows import Sampled, sample_setting
from iec.experiments.settings import Setting, Technique, quantizes
from iec.method.config import IECConfig
from iec.models.loading import load_pipeline
from iec.runtime import network_of
from iec.storage.fingerprint import fingerprint

REFRESH_ONLY = IECConfig(relaxation=0, cache="refresh")


@dataclass(frozen=True)
class Part:
    """One table: so many images from each seed, of every system without and with IEC, and with the refresh alone."""

    num_steps: int
    images: int
    seeds: tuple[int, ...]
    systems: tuple[str, ...]
    refresh: tuple[str, ...]

    def settings(self) -> list[Setting]:
        """Its rows, those of one system together."""
        rows = []
        for system in self.systems:
            technique = _packed(parse_technique(system))
            corrections = [None, IECConfig.paper(), *([REFRESH_ONLY] if system in self.refresh else [])]
            rows += [Setting(self.num_steps, technique, correction) for correction in corrections]
        return rows


@dataclass(frozen=True)
class EvidenceConfig:
    """One size of evidence.toml."""

    dtype: str
    batch_size: int
    calibration: Calibration
    parts: tuple[Part, ...]

    @classmethod
    def load(cls, size: str, path: Path | None = None) -> "EvidenceConfig":
        """A size of the package's evidence.toml, or of another file. Raises ValueError for one that is not there."""
        source = files("iec.experiments") / "evidence.toml" if path is None else path
        found: dict[str, Any] = tomllib.loads(source.read_text(encoding="utf-8"))
        sizes = [name for name, value in found.items() if isinstance(value, list)]
        if size not in sizes:
            raise ValueError(f"Unknown size '{size}': use {' or '.join(sizes)}.")
        parts = tuple(_part(entry) for entry in found[size])
        return cls(found["dtype"], found["batch_size"], Calibration(**found["calibration"]), parts)


@dataclass(frozen=True)
class Row:
    """One setting of a part, with the images of all its seeds in order."""

    part: Part
    setting: Setting
    sampled: tuple[StoredRow, ...]

    @property
    def images(self) -> torch.Tensor:
        """uint8 [n, 3, H, W]."""
        return torch.cat([row.images for row in self.sampled])

    @property
    def record(self) -> dict[str, Any]:
        """What was recorded with the first seed: evaluations and bytes are those of every seed."""
        return self.sampled[0].record


class Evidence:
    """Samples the rows of a size and keeps them in `folder`; a row that is there already is read.

    on_row(setting, seed, done): before each row; done says that it is there. on_images(images): after each batch.
    """

    def __init__(
        self,
        config: EvidenceConfig,
        folder: Path,
        on_row: Callable[[Setting, int, bool], None] = lambda setting, seed, done: None,
        on_images: Callable[[int], None] = lambda images: None,
        on_calibration: Callable[[Setting, int, int], None] = lambda setting, done, total: None,
    ) -> None:
        self.config, self.on_row, self.on_images = config, on_row, on_images
        self.rows = ResultFolder(folder / "rows")
        self.plans = Plans(config.calibration, folder / "plans", on_calibration)

    def run(self, selected: Callable[[Setting], bool] = lambda setting: True) -> list[Row]:
        """All selected rows, part by part, sampled where they are missing."""
        return [
            Row(part, setting, tuple(self._row(part, setting, seed) for seed in part.seeds))
            for part in self.config.parts
            for setting in part.settings()
            if selected(setting)
        ]

    def _row(self, part: Part, setting: Setting, seed: int) -> StoredRow:
        pipe = load_pipeline(dtype=getattr(torch, self.config.dtype))
        key = digest(self._settings(pipe, part, setting, seed))
        found = self.rows.find(key)
        self.on_row(setting, seed, found is not None)
        if found is not None:
            self.on_images(part.images)
            return found
        sampled = sample_setting(pipe, setting, part.images, seed, self.config.batch_size, self.plans, self.on_images)
        row = StoredRow(sampled.images, _record(setting, seed, sampled))
        self.rows.add(key, row)
        return row

    def _settings(self, pipe: DiffusionPipeline, part: Part, setting: Setting, seed: int) -> dict[str, Any]:
        """Everything that decides a row's bytes."""
        return {
            "weights": fingerprint(network_of(pipe)),
            "scheduler": pipe.scheduler.config.spacing,
            "dtype": self.config.dtype,
            "num_steps": setting.num_steps,
            "technique": technique_settings(setting.technique),
            "plan": self.plans.digest(pipe, setting),
            "correction": None if setting.correction is None else setting.correction.to_dict(),
            "seed": seed,
            "images": part.images,
            "batch_size": self.config.batch_size,
            "torch": torch.__version__,
        }


def _packed(technique: Technique | None) -> Technique | None:
    """The technique with its weights stored in the bytes that the table reports."""
    return replace(technique, storage="packed") if quantizes(technique) else technique


def _record(setting: Setting, seed: int, sampled: Sampled) -> dict[str, Any]:
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
        "threads": torch.get_num_threads(),
    }


def _part(entry: Mapping[str, Any]) -> Part:
    return Part(
        int(entry["num_steps"]),
        int(entry["images"]),
        tuple(entry["seeds"]),
        tuple(entry["systems"]),
        tuple(entry["refresh"]),
    )
