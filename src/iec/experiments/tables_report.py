"""A measured table as a page: our figure beside the published one, and what IEC changes in both."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from iec.evaluation.bootstrap import Estimate
from iec.experiments.results import StoredRow
from iec.experiments.rows import Figures, Judge, Verdict, compare
from iec.experiments.settings import Setting, describe_correction, quantizes
from iec.experiments.tables import ExperimentTable, MeasuredSystem
from iec.models.features import load_feature_network, load_reference
from iec.reports.grid import picture_grid, save_png
from iec.reports.plot import Point, quality_cost_plot
from iec.reports.table import Column, Row, Table, to_markdown
from iec.storage.files import write_json, write_text

_GRID_IMAGES = 12


@dataclass(frozen=True)
class JudgedSystem:
    """A measured system with the figures of its rows, and each corrected row against the uncorrected one."""

    measured: MeasuredSystem
    figures: tuple[Figures, ...]
    verdicts: tuple[Verdict, ...]


def judge_table(measured: Sequence[MeasuredSystem], full_precision: torch.Tensor) -> list[JudgedSystem]:
    """The figures of all rows."""
    judge = Judge(load_feature_network(), load_reference(), full_precision)
    judged = []
    for one in measured:
        figures = [judge.judge(row.images) for row in one.rows]
        verdicts = [compare(corrected, figures[0], one.settings[0]) for corrected in figures[1:]]
        judged.append(JudgedSystem(one, tuple(figures), tuple(verdicts)))
    return judged


def result_table(table: ExperimentTable, judged: Sequence[JudgedSystem]) -> Table:
    """Every system with every correction; where figures are published, what IEC changes in ours and in theirs."""
    names = list(dict.fromkeys(name for one in judged for name in one.measured.system.published))
    columns = (
        Column("correction", align="left"),
        Column("FD-cifar", note="ours"),
        Column("change", note="ours, %"),
        *(column for name in names for column in (Column(name, note="published"), Column("change", note="%"))),
        Column("KD-cifar x1000", note="ours"),
        Column("against none", note="KD-cifar, paired"),
        Column("PSNR", note="dB"),
        Column("evaluations", note="full + cached"),
        Column("overhead", note="processor time, %"),
    )
    rows = [row for one in judged for row in _rows(one, names)]
    quantized = any(quantizes(one.measured.settings[0].technique) for one in judged)
    notes = (
        f"{table.images} images of seed {table.seed} on the embedded CIFAR-10 model (4.3 million parameters), T="
        f"{table.num_steps} {table.spacing}, eta 0, {table.dtype}; 95 % bootstrap intervals.",
        "The published figures are FIDs of other models over 50,000 images and cannot be compared in value: the "
        "columns `change` say by how much correction lowers (-) or raises (+) each.",
        *(["Quantized arithmetic is simulated."] if quantized else []),
    )
    return Table(table.title, columns, tuple(rows), notes)


def table_markdown(table: ExperimentTable, judged: Sequence[JudgedSystem]) -> str:
    """The page."""
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    counted = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in ("wins", "loses", "not separable")}
    lead = (
        f"Of {len(verdicts)} corrected rows, {counted['wins']} are better than the same system without correction, "
        f"{counted['loses']} are worse, and {counted['not separable']} cannot be told apart with {table.images} images "
        "(KD-cifar, paired 95 % intervals)."
    )
    return "\n\n".join(
        [
            f"# {table.name}: {table.title}",
            f"Written by `iec reproduce {table.name}`; nothing on this page was put in by hand.",
            lead,
            to_markdown(result_table(table, judged)),
            f"![KD-cifar against cost]({table.name}.svg)",
            f"![The same seeds in every row]({table.name}.png)",
        ]
    )


def write_table(table: ExperimentTable, judged: Sequence[JudgedSystem], folder: Path) -> list[Path]:
    """Write the page, its plot of quality against cost, and its picture grid into `folder`; returns their paths."""
    paths = [folder / f"{table.name}{suffix}" for suffix in (".md", ".svg", ".png", ".json")]
    write_text(paths[0], table_markdown(table, judged) + "\n")
    points = [point for one in judged for point in _points(one)]
    write_text(paths[1], quality_cost_plot(points, "KD-cifar x1000"))
    pictures = [
        (setting.label, row.images[:_GRID_IMAGES])
        for one in judged
        for setting, row in zip(one.measured.settings, one.measured.rows, strict=True)
    ]
    save_png(picture_grid(pictures), paths[2])
    write_json(paths[3], table_json(table, judged))
    return paths


def table_json(table: ExperimentTable, judged: Sequence[JudgedSystem]) -> dict[str, Any]:
    """The figures as JSON values."""
    rows = [
        {
            **stored.record,
            "correction": None if setting.correction is None else setting.correction.to_dict(),
            "published": {name: values[i] for name, values in one.measured.system.published.items() if i < len(values)},
            "kd_cifar": asdict(figures.kernel),
            "fd_cifar": asdict(figures.frechet),
            "psnr": None if figures.psnr is None else asdict(figures.psnr),
        }
        for one in judged
        for i, (setting, stored, figures) in enumerate(
            zip(one.measured.settings, one.measured.rows, one.figures, strict=True)
        )
    ]
    return {"table": table.name, "title": table.title, "num_steps": table.num_steps, "rows": rows}


def _rows(one: JudgedSystem, names: Sequence[str]) -> list[Row]:
    rows = []
    first, stored = one.figures[0], one.measured.rows
    for i, (setting, figures) in enumerate(zip(one.measured.settings, one.figures, strict=True)):
        record = stored[i].record
        published = [cell for name in names for cell in _published(one.measured.system.published.get(name, ()), i)]
        cells = (
            "none" if setting.correction is None else describe_correction(setting.correction),
            _spread(figures.frechet, 1, 2),
            _change(first.frechet.value, figures.frechet.value) if i else "",
            *published,
            _spread(figures.kernel, 1000, 1),
            f"{_spread(one.verdicts[i - 1].difference, 1000, 1)} {one.verdicts[i - 1].outcome}" if i else "",
            "reference" if figures.psnr is None else _spread(figures.psnr, 1, 1),
            f"{record['full_evaluations']} + {record['cached_evaluations']}",
            _change(_seconds(stored[0]), _seconds(stored[i])) if i else "",
        )
        rows.append(Row(cells, "", setting.system))
    return rows


def _published(values: Sequence[float], index: int) -> tuple[str, str]:
    if index >= len(values):
        return "", ""
    return f"{values[index]:g}", _change(values[0], values[index]) if index and values[0] else ""


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.0f}"


def _seconds(row: StoredRow) -> float:
    return float(row.record["processor_seconds"])


def _points(one: JudgedSystem) -> list[Point]:
    points = []
    for setting, row, figures in zip(one.measured.settings, one.measured.rows, one.figures, strict=True):
        kernel, cost = figures.kernel, float(row.record["cost"])
        low, high = min(kernel.low, kernel.value), max(kernel.high, kernel.value)
        points.append(Point(setting.label, cost, 1000 * kernel.value, 1000 * low, 1000 * high, _kind(setting)))
    return points


def _kind(setting: Setting) -> str:
    if setting.correction is not None:
        return "corrected"
    return "full precision" if setting.technique is None else "without correction"


def _spread(estimate: Estimate, scale: float, digits: int) -> str:
    value, low, high = (scale * part for part in (estimate.value, estimate.low, estimate.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
