"""The evidence on the efficient models: every system without and with correction, sampled once and kept."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from iec.experiments.language import parse_technique
from iec.experiments.measuring import Measurements
from iec.experiments.plans import Calibration
from iec.experiments.results import StoredRow
from iec.experiments.settings import Setting
from iec.method.config import IECConfig

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
            technique = parse_technique(system)
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
    device: str = "cpu"

    def with_images(self, images: int) -> "EvidenceConfig":
        """The same with so many images from each seed."""
        return replace(self, parts=tuple(replace(part, images=images) for part in self.parts))

    def measurements(self, folder: Path, **callbacks: Any) -> Measurements:
        """Rows with these settings, kept in `folder`; the callbacks are those of `Measurements`."""
        return Measurements(folder, self.dtype, self.batch_size, self.calibration, device=self.device, **callbacks)

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


def measure(
    config: EvidenceConfig, measurements: Measurements, selected: Callable[[Setting], bool] = lambda setting: True
) -> list[Row]:
    """All selected rows, part by part, sampled where they are missing."""
    return [
        Row(part, setting, tuple(measurements.row(setting, part.images, seed) for seed in part.seeds))
        for part in config.parts
        for setting in part.settings()
        if selected(setting)
    ]


def available(config: EvidenceConfig, measurements: Measurements) -> list[Row]:
    """The rows that are there already, of all their seeds."""
    rows = []
    for part in config.parts:
        for setting in part.settings():
            found = [measurements.find(setting, part.images, seed) for seed in part.seeds]
            if None not in found:
                rows.append(Row(part, setting, tuple(row for row in found if row is not None)))
    return rows


def _part(entry: Mapping[str, Any]) -> Part:
    return Part(
        int(entry["num_steps"]),
        int(entry["images"]),
        tuple(entry["seeds"]),
        tuple(entry["systems"]),
        tuple(entry["refresh"]),
    )
