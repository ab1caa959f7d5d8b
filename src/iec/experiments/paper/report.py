"""A table at the paper's scale as a page: our figure beside the published one, with the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iec.evaluation.metrics.figure import Figure
from iec.experiments.corrections import describe_correction
from iec.experiments.paper.tables import OVERHEAD, PaperRow, PaperTable
from iec.experiments.settings import quantizes
from iec.experiments.spread import signed_percent, spread
from iec.reports.table import Column, Row, Table, to_markdown
from iec.storage.files import write_json, write_text


@dataclass(frozen=True)
class PaperResult:
    """A row with its figures, by the paper's names, and what its folder records of its sampling."""

    row: PaperRow
    figures: Mapping[str, Figure]
    record: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Wall time of all its batches."""
        return float(self.record["cost"]["seconds"])


@dataclass(frozen=True)
class PaperReport:
    """The results of a table, those of a system together. features: what the figures are made of, and the reference.

    differences: what differs from the paper's setting, one sentence each.
    """

    table: PaperTable
    systems: Sequence[Sequence[PaperResult]]
    features: str
    differences: Sequence[str]


def report_table(report: PaperReport) -> Table:
    """Every row: ours, published, and the difference; overhead in wall time against the same system uncorrected."""
    results = [result for system in report.systems for result in system]
    published = list(dict.fromkeys(name for result in results for name in result.row.published if name != OVERHEAD))
    others = [name for name in results[0].figures if name not in published]
    overheads = any(OVERHEAD in result.row.published for result in results)
    columns = (
        Column("correction", align="left"),
        *(
            column
            for name in published
            for column in (Column(name, note="ours"), Column(name, note="published"), Column("difference"))
        ),
        *(Column(name, note="ours") for name in others),
        Column("evaluations", note="full + cached"),
        Column("overhead", note="wall time, %"),
        *([Column("overhead", note="published, %")] if overheads else []),
    )
    rows = []
    for system in report.systems:
        for result in system:
            cells = [cell for name in published for cell in _compared(result, name)]
            cells += [_spread(result.figures[name]) for name in others]
            cost = result.record["cost"]
            cells.append(f"{cost['full_evaluations']} + {cost['cached_evaluations']}")
            first = system[0].seconds
            cells.append(
                "" if result is system[0] or not first else signed_percent(100 * (result.seconds / first - 1), 1)
            )
            if overheads:
                cells.append(f"{result.row.published[OVERHEAD]:g}" if OVERHEAD in result.row.published else "")
            correction = result.row.setting.correction
            name = "none" if correction is None else describe_correction(correction)
            rows.append(Row((name, *cells), "", result.row.setting.system))
    return Table(f"{report.table.title}: {report.table.model.dataset}", columns, tuple(rows), tuple(_notes(report)))


def report_markdown(report: PaperReport) -> str:
    """The page."""
    table = report.table
    command = f"iec reproduce {table.name} --scale paper --data {table.model.name}"
    return "\n\n".join(
        [
            f"# {table.name}, {table.model.dataset}: {table.title}",
            f"Written by `{command}`; nothing on this page was put in by hand. The model is {table.model.title}.",
            to_markdown(report_table(report)),
        ]
    )


def report_json(report: PaperReport) -> dict[str, Any]:
    """The figures as JSON values."""
    rows = [
        {
            "setting": result.row.setting.label,
            "published": dict(result.row.published),
            "figures": {name: figure.to_dict() for name, figure in result.figures.items()},
            "difference": {
                name: result.figures[name].estimate.value - value
                for name, value in result.row.published.items()
                if name in result.figures
            },
            "cost": result.record["cost"],
        }
        for system in report.systems
        for result in system
    ]
    return {
        "table": report.table.name,
        "dataset": report.table.model.dataset,
        "features": report.features,
        "differences": list(report.differences),
        "rows": rows,
    }


def write_report(report: PaperReport, folder: Path) -> list[Path]:
    """Write the page and the figures as JSON into `folder`; returns their paths."""
    page, values = folder / f"{report.table.stem}.md", folder / f"{report.table.stem}.json"
    write_text(page, report_markdown(report) + "\n")
    write_json(values, report_json(report))
    return [page, values]


def _compared(result: PaperResult, name: str) -> tuple[str, str, str]:
    """Ours, the published figure, and the difference; empty where there is none."""
    figure, value = result.figures.get(name), result.row.published.get(name)
    ours = "" if figure is None else _spread(figure)
    if value is None:
        return ours, "", ""
    return ours, f"{value:g}", "" if figure is None else f"{figure.estimate.value - value:+.2f}"


def _notes(report: PaperReport) -> list[str]:
    quantized = any(quantizes(system[0].row.setting.technique) for system in report.systems)
    warnings = [figure.warning for system in report.systems for result in system for figure in result.figures.values()]
    return [
        report.features,
        "95 % bootstrap intervals over our images; the published figures come without.",
        *report.differences,
        *(["Quantized arithmetic is simulated, so its time says nothing about integer hardware."] if quantized else []),
        *dict.fromkeys(warning for warning in warnings if warning),
    ]


def _spread(figure: Figure) -> str:
    return spread(figure.estimate, 1, 2)
