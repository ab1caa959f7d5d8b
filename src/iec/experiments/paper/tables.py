"""Which rows a table of the paper has for one data set, from the same data as the embedded scale."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from iec.efficient import QuantizationConfig
from iec.experiments.language import parse_correction, parse_technique
from iec.experiments.settings import Setting, Technique
from iec.experiments.tables import ExperimentTable, System, load_tables
from iec.models.paper import PaperModel, paper_model, paper_models

#: The tables that the paper has; our ablations are of the embedded scale.
PAPER_TABLES = ("table1", "table2", "table3", "table4", "table5")
OVERHEAD = "overhead %"


@dataclass(frozen=True)
class PaperRow:
    """One row. published: what the paper gives for it, by figure: FID, IS, CLIP score, overhead %."""

    setting: Setting
    published: Mapping[str, float]


@dataclass(frozen=True)
class PaperTable:
    """A table's rows for one data set, those of a system together, the uncorrected one first."""

    name: str
    title: str
    model: PaperModel
    systems: tuple[tuple[PaperRow, ...], ...]

    @property
    def stem(self) -> str:
        """What its files are called."""
        return f"{self.name}-{self.model.name}"


def load_paper_table(name: str, data: str | None = None) -> PaperTable:
    """The rows of table `name` for the data set of the paper model `data`; None for the only one.

    Raises ValueError where the paper has no such table, the table no such data set, or several and none was chosen.
    """
    if name not in PAPER_TABLES:
        raise ValueError(f"The paper scale has {', '.join(PAPER_TABLES)}, but no '{name}'.")
    parts = load_tables(name)
    known = [model.name for model in paper_models().values() if any(_has(part, model.dataset) for part in parts)]
    if data is None and len(known) > 1:
        raise ValueError(f"{name} has several data sets: choose one with --data {' or '.join(known)}.")
    chosen = known[0] if data is None else data
    if chosen not in known:
        raise ValueError(f"{name} has no data set '{chosen}': use --data {' or '.join(known)}.")
    model = paper_model(chosen)
    part = next(part for part in parts if _has(part, model.dataset))
    systems = [_rows(part, system, model) for system in part.systems if model.dataset in system.published]
    return PaperTable(name, part.title, model, tuple(systems))


def _has(part: ExperimentTable, dataset: str) -> bool:
    return any(dataset in system.published for system in part.systems)


def _rows(part: ExperimentTable, system: System, model: PaperModel) -> tuple[PaperRow, ...]:
    technique = _at_branch(parse_technique(system.name), model.branch)
    names = {"": "FID", " IS": "IS", " CLIP": "CLIP score", f" {OVERHEAD}": OVERHEAD}
    published = {figure: system.published.get(model.dataset + suffix, ()) for suffix, figure in names.items()}
    return tuple(
        PaperRow(
            Setting(model.num_steps, technique, parse_correction(text)),
            {figure: values[i] for figure, values in published.items() if i < len(values)},
        )
        for i, text in enumerate(part.corrections)
    )


def _at_branch(technique: Technique | None, branch: int) -> Technique | None:
    """The cache at the branch of the experiments."""
    return (
        technique
        if technique is None or isinstance(technique, QuantizationConfig)
        else replace(technique, branch=branch)
    )
