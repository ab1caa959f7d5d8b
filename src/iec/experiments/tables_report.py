"""A measured table as a page: our figure beside the published one, and what IEC changes in both."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from iec.evaluation.bootstrap import Estimate, bootstrap_kernel_difference
from iec.evaluation.metrics.inception_score import inception_score
from iec.experiments.corrections import describe_correction
from iec.experiments.plans import needs_plan
from iec.experiments.results import StoredRow
from iec.experiments.rows import Figures, Judge, Verdict, compare
from iec.experiments.settings import Setting, at_interval, quantizes
from iec.experiments.spread import kernel_spread, psnr_spread, signed_percent, spread, verdict_spread
from iec.experiments.tables import OVERHEAD, ExperimentTable, MeasuredSystem
from iec.models.features import load_feature_network, load_reference
from iec.reports.grid import picture_grid, save_png
from iec.reports.plot import Point, quality_cost_plot
from iec.reports.table import Column, Row, Table, to_markdown
from iec.storage.files import write_json, write_text

_GRID_IMAGES = 12
_PUBLISHED_NOTE = (
    "The published figures are FIDs of other models over 50,000 images and cannot be compared in value: the columns "
    "`change` say by how much correction lowers (-) or raises (+) each."
)


@dataclass(frozen=True)
class JudgedSystem:
    """A measured system with the figures of its rows, and each corrected row against the uncorrected one.

    scores: IS-cifar of the rows where the paper gives an Inception Score, else empty. rivals: each corrected row
    against the best uncorrected row of the table, on the same weights, that costs no more.
    """

    measured: MeasuredSystem
    figures: tuple[Figures, ...]
    verdicts: tuple[Verdict, ...]
    scores: tuple[Estimate, ...] = ()
    rivals: tuple[Verdict, ...] = ()

    @property
    def name(self) -> str:
        """How a report names it."""
        return self.measured.settings[0].system


@dataclass(frozen=True)
class JudgedTable:
    """A table, or a part of it, with the figures of its rows."""

    table: ExperimentTable
    systems: tuple[JudgedSystem, ...]


def judge_table(measured: Sequence[MeasuredSystem], full_precision: torch.Tensor) -> list[JudgedSystem]:
    """The figures of all rows."""
    judge = Judge(full_precision)
    judged = []
    for one in measured:
        figures = [judge.judge(row.images) for row in one.rows]
        verdicts = [compare(corrected, figures[0], one.settings[0]) for corrected in figures[1:]]
        scored = [row.images for row in one.rows] if one.system.publishes("IS") else []
        scores = [judge.inception_score(images) for images in scored]
        alone = tuple(own.alone() for own in figures)
        judged.append(JudgedSystem(one, alone, tuple(verdicts), tuple(scores)))
    return [replace(one, rivals=tuple(_equal_cost(one, judged, judge))) for one in judged]


def _equal_cost(one: JudgedSystem, judged: Sequence[JudgedSystem], judge: Judge) -> Iterator[Verdict]:
    weights = at_interval(one.measured.settings[0].technique, 1)
    plain = [rival for rival in judged if at_interval(rival.measured.settings[0].technique, 1) == weights]
    for corrected, verdict in zip(one.measured.rows[1:], one.verdicts, strict=True):
        paid = [rival for rival in plain if _cost(rival.measured.rows[0]) <= _cost(corrected) + 1e-9]
        best = min(paid, key=lambda rival: rival.figures[0].kernel.value)
        if best is one:
            yield verdict
        else:  # computed again, since the terms of all rows would take 8 n^2 bytes each
            terms = judge.terms(corrected.images), judge.terms(best.measured.rows[0].images)
            yield Verdict(best.measured.settings[0], bootstrap_kernel_difference(*terms))


def _cost(row: StoredRow) -> float:
    return float(row.record["cost"])


def result_table(judged: JudgedTable) -> Table:
    """Every system with every correction; where figures are published, what IEC changes in ours and in theirs."""
    table, systems = judged.table, judged.systems
    names = list(dict.fromkeys(name for one in systems for name in one.measured.system.published))
    absent = ("CLIP score",) if table.publishes("CLIP") else ()
    columns = (
        Column("correction", align="left"),
        Column("FD-cifar", note="ours"),
        Column("change", note="ours, %"),
        *([Column("IS-cifar", note="ours, higher is better")] if table.publishes("IS") else []),
        *(Column(name, note="ours") for name in absent),
        *(column for name in names for column in (Column(name, note="published"), Column("change", note="%"))),
        Column("KD-cifar x1000", note="ours"),
        Column("against none", note="KD-cifar, paired"),
        Column("against no more cost", note="the best uncorrected row here"),
        Column("PSNR", note="dB"),
        Column("evaluations", note="full + cached"),
        Column("cost", note="full evaluations"),
        *([Column("overhead", note=f"{table.timed}, %")] if table.publishes(OVERHEAD) else []),
    )
    rows = [row for one in systems for row in _rows(one, names, table.publishes("IS"), absent)]
    techniques = [found for one in systems if (found := one.measured.settings[0].technique) is not None]
    quantized, planned = any(map(quantizes, techniques)), any(map(needs_plan, techniques))
    notes = (
        sampling_sentence(table),
        *([_PUBLISHED_NOTE] if names else []),
        *([_score_note()] if table.publishes("IS") else []),
        *([table.absent] if table.absent else []),
        *([plan_sentence(table)] if planned else []),
        *(["Quantized arithmetic is simulated."] if quantized else []),
    )
    return Table(table.title, columns, tuple(rows), notes)


def table_markdown(parts: Sequence[JudgedTable]) -> str:
    """The page of a table in its parts."""
    table = parts[0].table
    title = f"{table.name}: {table.title}" if len(parts) == 1 else table.name
    return "\n\n".join(
        [
            f"# {title}",
            f"Written by `iec reproduce {table.name}`; nothing on this page was put in by hand.",
            *(block for part in parts for block in _section(part, titled=len(parts) > 1)),
        ]
    )


def write_table(parts: Sequence[JudgedTable], folder: Path) -> list[Path]:
    """Write the page, the figures as JSON, and of every part a plot of quality against cost and a picture grid.

    Returns their paths, the page first.
    """
    name = parts[0].table.name
    page, values = folder / f"{name}.md", folder / f"{name}.json"
    write_text(page, table_markdown(parts) + "\n")
    write_json(values, table_json(parts))
    return [page, values, *(path for part in parts for path in _write_pictures(part, folder))]


def table_json(parts: Sequence[JudgedTable]) -> dict[str, Any]:
    """The figures as JSON values."""
    found = [
        {"title": part.table.title, "num_steps": part.table.num_steps, "rows": _json_rows(part.systems)}
        for part in parts
    ]
    name = parts[0].table.name
    if len(parts) == 1:
        return {"table": name, **found[0]}
    named = zip((part.table.part for part in parts), found, strict=True)
    return {"table": name, "parts": [{"part": part, **values} for part, values in named]}


def lead_sentence(judged: JudgedTable) -> str:
    """How many corrected rows are better and how many are worse than without, and than what costs no more."""
    verdicts = [verdict for one in judged.systems for verdict in one.verdicts]
    others = [verdict for one in judged.systems for verdict in one.rivals if verdict.rival.system != one.name]
    against = (
        f" For {len(others)} of them another uncorrected row of this page, on the same weights, is the best that costs "
        f"no more; against it: {_counted(others)}."
    )
    return (
        f"{len(verdicts)} corrected rows against the same system without correction: {_counted(verdicts)} with "
        f"{judged.table.images} images (KD-cifar, paired 95 % intervals).{against if others else ''}"
    )


def _counted(verdicts: Sequence[Verdict]) -> str:
    found = Counter(verdict.outcome for verdict in verdicts)
    return f"{found['wins']} better, {found['loses']} worse, {found['not separable']} that cannot be told apart"


def quality_plot(judged: JudgedTable) -> str:
    """KD-cifar of every row against its cost, as an SVG element."""
    return quality_cost_plot([point for one in judged.systems for point in _points(one)], "KD-cifar x1000")


def seed_grid(judged: JudgedTable) -> Image:
    """The first images of every row, same seeds in the same column."""
    pictures = [
        (setting.label, row.images[:_GRID_IMAGES])
        for one in judged.systems
        for setting, row in zip(one.measured.settings, one.measured.rows, strict=True)
    ]
    return picture_grid(pictures)


def sampling_sentence(table: ExperimentTable) -> str:
    """What every row of the table was sampled with."""
    sampler = "Stable Diffusion's PLMS" if table.solver == "plms-sd" else f"{table.spacing}, eta 0"
    return (
        f"{table.images} images of seed {table.seed} on the embedded CIFAR-10 model (4.3 million parameters), T="
        f"{table.num_steps} {sampler}, {table.dtype} on {table.device}; 95 % bootstrap intervals."
    )


def _score_note() -> str:
    real = inception_score(load_feature_network().logits(load_reference().features))
    return (
        "IS-cifar is by the embedded CIFAR-10 classifier, over all images at once, from 1 to 10; CIFAR-10's test set "
        f"has {real.value:.2f}. The published IS is Inception's, over 1,000 classes."
    )


def plan_sentence(table: ExperimentTable) -> str:
    """What the plans of the table's systems were made from."""
    calibration = table.calibration
    return f"Plans are from {calibration.samples} trajectories of seed {calibration.seed} + 2000."


def _section(judged: JudgedTable, titled: bool) -> list[str]:
    """The lead, the table and the pictures of one part."""
    table = judged.table
    return [
        *([f"## {table.part}: {table.title}"] if titled else []),
        lead_sentence(judged),
        to_markdown(result_table(judged)),
        f"![KD-cifar against cost]({table.stem}.svg)",
        f"![The same seeds in every row]({table.stem}.png)",
    ]


def _write_pictures(judged: JudgedTable, folder: Path) -> list[Path]:
    plot, grid = folder / f"{judged.table.stem}.svg", folder / f"{judged.table.stem}.png"
    write_text(plot, quality_plot(judged))
    save_png(seed_grid(judged), grid)
    return [plot, grid]


def _json_rows(systems: Sequence[JudgedSystem]) -> list[dict[str, Any]]:
    return [
        {
            **stored.record,
            "correction": None if setting.correction is None else setting.correction.to_dict(),
            "published": {name: values[i] for name, values in one.measured.system.published.items() if i < len(values)},
            "kd_cifar": asdict(figures.kernel),
            "fd_cifar": asdict(figures.frechet),
            "against_no_more_cost": None if not i else _contest_json(one.rivals[i - 1]),
            "psnr": None if figures.psnr is None else asdict(figures.psnr),
            **({"is_cifar": asdict(one.scores[i])} if one.scores else {}),
            **({"overhead_percent": one.measured.overheads[i]} if one.measured.overheads else {}),
        }
        for one in systems
        for i, (setting, stored, figures) in enumerate(
            zip(one.measured.settings, one.measured.rows, one.figures, strict=True)
        )
    ]


def _contest_json(verdict: Verdict) -> dict[str, Any]:
    return {"rival": verdict.rival.label, "kd_cifar_difference": asdict(verdict.difference), "outcome": verdict.outcome}


def _rows(one: JudgedSystem, names: Sequence[str], scored: bool, absent: Sequence[str]) -> list[Row]:
    rows = []
    first = one.figures[0]
    for i, (setting, figures) in enumerate(zip(one.measured.settings, one.figures, strict=True)):
        record = one.measured.rows[i].record
        published = [cell for name in names for cell in _published(one.measured.system.published.get(name, ()), i)]
        cells = (
            "none" if setting.correction is None else describe_correction(setting.correction),
            spread(figures.frechet, 1, 2),
            _change(first.frechet.value, figures.frechet.value) if i else "",
            *([spread(one.scores[i], 1, 2) if one.scores else ""] if scored else []),
            *("paper scale only" for _ in absent),
            *published,
            kernel_spread(figures.kernel),
            verdict_spread(one.verdicts[i - 1]) if i else "",
            _rival(one.rivals[i - 1], setting) if i else "",
            psnr_spread(figures.psnr),
            f"{record['full_evaluations']} + {record['cached_evaluations']}",
            f"{record['cost']:.1f}",
            *(signed_percent(percent) if i else "" for percent in one.measured.overheads[i : i + 1]),
        )
        rows.append(Row(cells, "", setting.system))
    return rows


def _rival(verdict: Verdict, corrected: Setting) -> str:
    name = "none" if verdict.rival.system == corrected.system else verdict.rival.system
    return f"{name}: {verdict_spread(verdict)}"


def _published(values: Sequence[float], index: int) -> tuple[str, str]:
    if index >= len(values):
        return "", ""
    return f"{values[index]:g}", _change(values[0], values[index]) if index and values[0] else ""


def _change(before: float, after: float) -> str:
    return signed_percent(100 * (after / before - 1))


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
