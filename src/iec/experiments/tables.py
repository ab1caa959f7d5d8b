"""The paper's tables and our ablations as data: systems times corrections, measured row by row."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from iec.experiments.language import parse_correction, parse_technique
from iec.experiments.measuring import Measurements
from iec.experiments.plans import Calibration
from iec.experiments.results import StoredRow
from iec.experiments.settings import Setting


@dataclass(frozen=True)
class System:
    """One system of a table; published: by data set, one figure per correction of the table."""

    name: str
    published: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class ExperimentTable:
    """One table: every system with every correction, at one number of steps and one spacing."""

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

    def settings(self, system: System) -> list[Setting]:
        """The settings of one system, one per correction, the uncorrected one first."""
        technique = parse_technique(system.name)
        return [Setting(self.num_steps, technique, parse_correction(text)) for text in self.corrections]

    def measurements(self, folder: Path, **callbacks: Any) -> Measurements:
        """Rows of this table's kind, kept in `folder`; the callbacks are those of `Measurements`."""
        return Measurements(folder, self.dtype, self.batch_size, self.calibration, **callbacks)


@dataclass(frozen=True)
class MeasuredSystem:
    """One system with its rows, one per correction."""

    system: System
    settings: tuple[Setting, ...]
    rows: tuple[StoredRow, ...]


def table_names() -> list[str]:
    """What `load_table` knows."""
    return [name for name, value in _contents().items() if isinstance(value, dict) and "rows" in value]


def load_table(name: str) -> ExperimentTable:
    """The table of that name from tables.toml. Raises ValueError where there is none."""
    found, names = _contents(), table_names()
    if name not in names:
        raise ValueError(f"There is no table '{name}': use {', '.join(names)}.")
    entry = found[name]
    systems = tuple(
        System(row["system"], {k: tuple(map(float, v)) for k, v in row.get("published", {}).items()})
        for row in entry["rows"]
    )
    return ExperimentTable(
        name,
        entry["title"],
        entry["num_steps"],
        entry["spacing"],
        tuple(entry["corrections"]),
        systems,
        found["images"],
        found["seed"],
        found["dtype"],
        found["batch_size"],
        Calibration(**found["calibration"]),
    )


def measure_table(table: ExperimentTable, measurements: Measurements) -> list[MeasuredSystem]:
    """All rows of the table, sampled where they are missing."""
    measured = []
    for system in table.systems:
        settings = table.settings(system)
        rows = [measurements.row(setting, table.images, table.seed, table.spacing) for setting in settings]
        measured.append(MeasuredSystem(system, tuple(settings), tuple(rows)))
    return measured


def full_precision(table: ExperimentTable, measurements: Measurements) -> StoredRow:
    """What the table's rows are measured against: full precision without correction."""
    return measurements.row(Setting(table.num_steps), table.images, table.seed, table.spacing)


def _contents() -> dict[str, Any]:
    return tomllib.loads((files("iec.experiments") / "tables.toml").read_text(encoding="utf-8"))
