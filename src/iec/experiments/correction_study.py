"""The study of the calibrated correction: each system with it, without it, and with its rivals at equal evaluations."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from iec.evaluation.bootstrap import Estimate
from iec.experiments.compare.request import cache_of
from iec.experiments.compare.rivals import tuned_samplings
from iec.experiments.language import parse_correction, parse_technique
from iec.experiments.measuring import Measurements
from iec.experiments.plans import Calibration
from iec.experiments.results import StoredRow
from iec.experiments.rows import Judge, PairableFigures, Verdict, compare
from iec.experiments.samplers.sampling import Sampling
from iec.experiments.settings import Setting
from iec.method.adams import AdamsConfig


@dataclass(frozen=True)
class Group:
    """One system at one number of steps.

    base: without correction. corrected: with each correction. rivals: what else so many evaluations buy on the same
    weights. full_precision: the same steps on the full-precision network, with its own plan too.
    """

    base: Setting
    corrected: tuple[Setting, ...]
    rivals: tuple[Setting, ...]
    full_precision: tuple[Setting, ...]
    tuned: bool

    @property
    def settings(self) -> tuple[Setting, ...]:
        """All but those that tuning chooses."""
        return (self.base, *self.corrected, *self.rivals, *self.full_precision)


@dataclass(frozen=True)
class CorrectionStudy:
    """The contents of correction_study.toml."""

    dtype: str
    batch_size: int
    images: int
    seeds: tuple[int, ...]
    calibration: Calibration
    reference_steps: int
    tuning_images: int
    groups: tuple[Group, ...]
    device: str = "cpu"

    @classmethod
    def load(cls, path: Path | None = None) -> "CorrectionStudy":
        """The package's file, or another."""
        source = files("iec.experiments") / "correction_study.toml" if path is None else path
        found: dict[str, Any] = tomllib.loads(source.read_text(encoding="utf-8"))
        groups = tuple(group for entry in found.pop("groups") for group in _groups(entry))
        calibration, seeds = Calibration(**found.pop("calibration")), tuple(found.pop("seeds"))
        return cls(**found, calibration=calibration, seeds=seeds, groups=groups)

    @property
    def reference(self) -> Setting:
        """What stands for the exact solution."""
        return Setting(self.reference_steps, None, AdamsConfig())

    def measurements(self, folder: Path, **callbacks: Any) -> Measurements:
        """Rows with these settings, kept in `folder`; the callbacks are those of `Measurements`."""
        return Measurements(folder, self.dtype, self.batch_size, self.calibration, device=self.device, **callbacks)

    def total_images(self) -> int:
        """How many images it looks at or samples in all, for its progress."""
        tuned = sum(map(len, tuned_samplings()))
        rows = sum(2 + len(group.settings) + 2 * group.tuned for group in self.groups)
        return rows * len(self.seeds) * self.images + sum(
            group.tuned * tuned * self.tuning_images for group in self.groups
        )


@dataclass(frozen=True)
class StudyRow:
    """One setting over the seeds that are there.

    cost: in full evaluations. kernel, psnr: over all images. per_seed: the kernel distance of each seed. against: the
    calibrated row of the group minus this one, paired by image; None for that row itself.
    """

    setting: Setting
    images: int
    cost: float
    kernel: Estimate
    psnr: Estimate | None
    per_seed: tuple[float, ...]
    against: Verdict | None


def measure_study(study: CorrectionStudy, measurements: Measurements, available: bool = False) -> list[list[StudyRow]]:
    """The rows of every group, sampled where they are missing, or only those that are there; empty groups left out."""
    source = _Rows(study, measurements, available)
    return [rows for group in study.groups if (rows := source.judged(group))]


class _Rows:
    """Rows by setting, each over as many seeds as all rows of its group have."""

    def __init__(self, study: CorrectionStudy, measurements: Measurements, available: bool) -> None:
        self.study, self.measurements, self.available = study, measurements, available

    def judged(self, group: Group) -> list[StudyRow]:
        """The rows of one group with their figures."""
        calibrated = group.corrected[0]
        found = {setting: rows for setting in self._settings(group) if (rows := self._seeds(setting))}
        reference = self._seeds(self.study.reference)
        if calibrated not in found or group.base not in found or not reference:
            return []  # only some rows are there
        count = min(len(found[calibrated]), len(found[group.base]), len(reference))
        judge = Judge(_images(reference[:count]))
        ours = judge.judge(_images(found[calibrated][:count]))
        return [
            self._row(setting, stored[:count], judge, None if setting == calibrated else ours)
            for setting, stored in found.items()
            if len(stored) >= count
        ]

    def _row(self, setting: Setting, stored: list[StoredRow], judge: Judge, ours: PairableFigures | None) -> StudyRow:
        figures = judge.judge(_images(stored))
        per_seed = tuple(1000 * judge.kernel_distance(row.images) for row in stored)
        against = None if ours is None else compare(ours, figures, setting)
        cost = sum(float(row.record["cost"]) for row in stored) / len(stored)
        return StudyRow(setting, len(_images(stored)), cost, figures.kernel, figures.psnr, per_seed, against)

    def _seeds(self, setting: Setting) -> list[StoredRow]:
        """The row of each seed, as long as they are there."""
        found: list[StoredRow] = []
        for seed in self.study.seeds:
            row = self._one(setting, self.study.images, seed)
            if row is None:
                break
            found.append(row)
        return found

    def _one(self, setting: Setting, images: int, seed: int, calibration: bool = False) -> StoredRow | None:
        if not self.available:
            return self.measurements.row(setting, images, seed, calibration=calibration)
        return self.measurements.find(setting, images, seed, calibration=calibration)

    def _settings(self, group: Group) -> Iterator[Setting]:
        yield from group.settings
        if group.tuned:
            for family in tuned_samplings():
                chosen = self._tuned([replace(group.base, sampler=sampling) for sampling in family])
                if chosen is not None:
                    yield chosen

    def _tuned(self, family: list[Setting]) -> Setting | None:
        """The best setting of a family on the calibration seed; None where not all of them are there."""
        images = self.study.tuning_images
        rows = [self._one(setting, images, self.study.seeds[0], calibration=True) for setting in family]
        kept = [row for row in rows if row is not None]
        if len(kept) < len(family):
            return None
        judge = Judge(kept[0].images)
        distances = [judge.kernel_distance(row.images) for row in kept]
        return family[distances.index(min(distances))]


def _images(rows: list[StoredRow]) -> torch.Tensor:
    return torch.cat([row.images for row in rows])


def _groups(entry: Mapping[str, Any]) -> Iterator[Group]:
    for name in entry["systems"]:
        technique = parse_technique(name)
        for steps in entry["num_steps"]:
            base = Setting(steps, technique)
            cache = cache_of(technique)
            if cache is not None and cache.interval > steps // (1 if base.system.startswith("DeepCache") else 2):
                continue
            corrected = tuple(replace(base, correction=parse_correction(text)) for text in entry["corrections"])
            rivals = tuple(replace(base, sampler=Sampling(solver)) for solver in entry["solvers"])
            full = Setting(steps)
            others = (full, replace(full, correction=corrected[0].correction)) if entry.get("full_precision") else ()
            yield Group(base, corrected, tuple(filter(_possible, rivals)), others, entry["tuned"])


def _possible(setting: Setting) -> bool:
    try:
        setting.sampler.require_steps(setting.num_steps)
    except ValueError:
        return False
    return True
