"""The paper's tables and our ablations as data: systems times corrections, measured row by row."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from iec.experiments.corrections import Correction, FittedCorrection
from iec.experiments.language import parse_correction, parse_technique
from iec.experiments.measuring import Measurements
from iec.experiments.plans import Calibration
from iec.experiments.results import StoredRow
from iec.experiments.samplers.sampling import Sampling, Solver
from iec.experiments.settings import Setting, Technique
from iec.experiments.timing import measured_overheads

#: What the paper gives of a row beside its FID, in percent of the uncorrected row's time.
OVERHEAD = "overhead %"


@dataclass(frozen=True)
class System:
    """One system of a table; published: by data set, one figure per correction of the table."""

    name: str
    published: Mapping[str, tuple[float, ...]]

    def publishes(self, figure: str) -> bool:
        """Whether the paper gives that figure, such as IS, beside FID."""
        return any(name.endswith(f" {figure}") for name in self.published)


@dataclass(frozen=True)
class ExperimentTable:
    """One table, or one part of it: every system with every correction, at one number of steps and one spacing.

    part: what of the table it is, where that has several. solver: as of `Sampling`. absent: one sentence on what of the
    paper's experiment has no counterpart on the embedded model. device: where it is sampled.
    """

    name: str
    title: str
    num_steps: int
    spacing: str
    corrections: tuple[str, ...]
    systems: tuple[System, ...]
    images: int
    seed: int
    dtype: str
    batch_size: int
    calibration: Calibration
    part: str = ""
    solver: Solver = "ddim"
    absent: str = ""
    device: str = "cpu"

    @property
    def timed(self) -> str:
        """Which time its overheads are of."""
        return "processor time" if torch.device(self.device).type == "cpu" else "time"

    @property
    def stem(self) -> str:
        """What its files are called."""
        return f"{self.name}-{self.part.lower()}" if self.part else self.name

    def setting(self, technique: Technique | None = None, correction: Correction | None = None) -> Setting:
        """A row at this table's number of steps, with its solver; PLMS evaluates once more than it steps."""
        evaluations = self.num_steps + self.solver.startswith("plms")
        return Setting(evaluations, technique, correction, Sampling(self.solver))

    def settings(self, system: System) -> list[Setting]:
        """The settings of one system, one per correction, the uncorrected one first."""
        technique = parse_technique(system.name)
        return [self.setting(technique, parse_correction(text)) for text in self.corrections]

    def as_published(self) -> "ExperimentTable":
        """The table with the corrections of the paper's kinds alone, which its figures show."""
        kept = [text for text in self.corrections if not isinstance(parse_correction(text), FittedCorrection)]
        return replace(self, corrections=tuple(kept))

    def publishes(self, figure: str) -> bool:
        """Whether the paper gives that figure for one of the systems."""
        return any(system.publishes(figure) for system in self.systems)

    def measurements(self, folder: Path, **callbacks: Any) -> Measurements:
        """Rows of this table's kind, kept in `folder`; the callbacks are those of `Measurements`."""
        return Measurements(folder, self.dtype, self.batch_size, self.calibration, device=self.device, **callbacks)


@dataclass(frozen=True)
class MeasuredSystem:
    """One system with its rows, one per correction.

    overheads: by how much more time each row takes than the first, in percent, where the paper gives it.
    """

    system: System
    settings: tuple[Setting, ...]
    rows: tuple[StoredRow, ...]
    overheads: tuple[float, ...] = ()


def table_names() -> list[str]:
    """What `load_tables` knows."""
    return [name for name, value in _contents().items() if all("rows" in part for part in _parts(value))]


def load_tables(name: str) -> list[ExperimentTable]:
    """The table of that name from tables.toml, in its parts. Raises ValueError where there is none."""
    found, names = _contents(), table_names()
    if name not in names:
        raise ValueError(f"There is no table '{name}': use {', '.join(names)}.")
    return [_table(name, entry, found) for entry in _parts(found[name])]


def load_table(name: str) -> ExperimentTable:
    """The first part of the table, or all of it. Raises ValueError where there is none."""
    return load_tables(name)[0]


def measure_table(table: ExperimentTable, measurements: Measurements) -> list[MeasuredSystem]:
    """All rows of the table, sampled where they are missing."""
    measured = []
    for system in table.systems:
        settings = table.settings(system)
        rows = [measurements.row(setting, table.images, table.seed, table.spacing) for setting in settings]
        timed = system.publishes(OVERHEAD)
        overheads = measured_overheads(measurements, settings, table.spacing) if timed else ()
        measured.append(MeasuredSystem(system, tuple(settings), tuple(rows), overheads))
    return measured


def full_precision(table: ExperimentTable, measurements: Measurements) -> StoredRow:
    """What the table's rows are measured against: full precision without correction."""
    return measurements.row(table.setting(), table.images, table.seed, table.spacing)


def _table(name: str, entry: Mapping[str, Any], common: Mapping[str, Any]) -> ExperimentTable:
    systems = tuple(
        System(row["system"], {k: tuple(map(float, v)) for k, v in row.get("published", {}).items()})
        for row in entry["rows"]
    )
    own = {key: value for key, value in entry.items() if key not in ("rows", "corrections", "calibration")}
    shared = {key: common[key] for key in ("images", "seed", "dtype", "batch_size")}
    calibration = Calibration(**common["calibration"] | entry.get("calibration", {}))
    corrections = tuple(entry["corrections"])
    return ExperimentTable(name, **shared | own, corrections=corrections, systems=systems, calibration=calibration)


def _parts(entry: Any) -> list[Mapping[str, Any]]:
    """The parts of an entry of tables.toml; of what is no table, one without rows."""
    if isinstance(entry, list):
        return entry
    return [entry] if isinstance(entry, dict) else [{}]


def _contents() -> dict[str, Any]:
    return tomllib.loads((files("iec.experiments") / "tables.toml").read_text(encoding="utf-8"))
