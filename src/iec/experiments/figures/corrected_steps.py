"""Quality and overhead over the fraction of corrected steps: table 5 as a plot."""

from collections.abc import Sequence
from dataclasses import asdict

from iec.experiments.corrections import describe_correction
from iec.experiments.figures.config import FigureConfig
from iec.experiments.figures.drawing import Drawing
from iec.experiments.measuring import Measurements
from iec.experiments.settings import Setting
from iec.experiments.spread import kernel_spread, signed_percent, verdict_spread
from iec.experiments.tables import OVERHEAD, MeasuredSystem, full_precision, measure_table
from iec.experiments.tables_report import JudgedSystem, judge_table
from iec.reports.lines import Line, Panel, line_plot
from iec.reports.table import Column, Row, Table

_PUBLISHED = f"CIFAR-10 {OVERHEAD}"
_FRACTION = "corrected of the full steps, %"


def steps_settings(figure: FigureConfig) -> list[Setting]:
    """Full precision, and every row of the table."""
    table = figure.table
    return [table.setting(), *(setting for system in table.systems for setting in table.settings(system))]


def draw_steps(figure: FigureConfig, measurements: Measurements) -> Drawing:
    """One panel of KD-cifar per system, and one with the overhead in time of all, beside the published one."""
    table = figure.table
    reference = full_precision(table, measurements)
    judged = judge_table(measure_table(table, measurements), reference.images)
    panels = [Panel(one.name, _FRACTION, "KD-cifar x1000 (lower is better)", [_quality(one)]) for one in judged]
    overheads = [line for place, one in enumerate(judged) for line in _overheads(one, place)]
    panels += [Panel("Overhead", _FRACTION, f"{table.timed}, %", overheads)] if overheads else []
    return Drawing(
        ".svg",
        line_plot(panels).encode(),
        "KD-cifar and overhead over the fraction of corrected steps",
        [*map(_sentence, judged), "A published overhead (dashed) is time on the authors' machine."],
        _table(judged, table.timed),
        {"systems": [_numbers(one) for one in judged]},
    )


def corrected_percent(measured: MeasuredSystem) -> list[float]:
    """How many of a system's full steps each of its rows corrected, in percent, from the evaluations it counted."""
    full = [int(row.record["full_evaluations"]) for row in measured.rows]
    passes = [getattr(setting.correction, "num_iterations", 1) for setting in measured.settings]
    return [100 * (count - full[0]) / (full[0] * each) for count, each in zip(full, passes, strict=True)]


def _quality(one: JudgedSystem) -> Line:
    points = sorted(zip(corrected_percent(one.measured), (f.kernel for f in one.figures), strict=True), key=_first)
    kernels = [kernel for _, kernel in points]
    return Line(
        "ours",
        [x for x, _ in points],
        [1000 * kernel.value for kernel in kernels],
        [1000 * min(kernel.low, kernel.value) for kernel in kernels],
        [1000 * max(kernel.high, kernel.value) for kernel in kernels],
    )


def _overheads(one: JudgedSystem, colour: int) -> list[Line]:
    x, published = corrected_percent(one.measured), one.measured.system.published.get(_PUBLISHED)
    if published is None:
        return []
    return [
        _plain(one.name, x, one.measured.overheads, colour),
        _plain(f"{one.name}, published", x, published, colour, dashed=True),
    ]


def _plain(name: str, x: Sequence[float], values: Sequence[float], colour: int, dashed: bool = False) -> Line:
    points = sorted(zip(x, values, strict=False), key=_first)  # not every row need be published
    y = [value for _, value in points]
    return Line(name, [place for place, _ in points], y, y, y, dashed, colour)


def _first(pair: tuple[float, object]) -> float:
    return pair[0]


def _sentence(one: JudgedSystem) -> str:
    x = corrected_percent(one.measured)
    found = {
        word: [f"{x[i]:.0f} %" for i, verdict in enumerate(one.verdicts, start=1) if verdict.outcome == outcome]
        for outcome, word in (("wins", "lowers"), ("loses", "raises"), ("not separable", "does not separably change"))
    }
    parts = [f"{word} KD-cifar at {', '.join(places)} of the full steps" for word, places in found.items() if places]
    return f"{one.name}: correction {'; it '.join(parts)}."


def _table(judged: Sequence[JudgedSystem], timed: str) -> Table:
    columns = (
        Column("correction", align="left"),
        Column("corrected steps", note="% of the full ones"),
        Column("KD-cifar x1000"),
        Column("against none", note="KD-cifar x1000, paired"),
        Column("overhead", note=f"{timed}, %"),
        Column("overhead", note="published, %"),
    )
    rows = []
    for one in judged:
        published = one.measured.system.published.get(_PUBLISHED, ())
        overhead = one.measured.overheads
        for i, percent in enumerate(corrected_percent(one.measured)):
            against = verdict_spread(one.verdicts[i - 1]) if i else ""
            correction = one.measured.settings[i].correction
            cells = (
                "none" if correction is None else describe_correction(correction),
                f"{percent:.0f}",
                kernel_spread(one.figures[i].kernel),
                against,
                signed_percent(overhead[i]) if overhead else "",
                f"{published[i]:+g}" if i < len(published) else "",
            )
            rows.append(Row(cells, "", one.name))
    return Table("", columns, tuple(rows))


def _numbers(one: JudgedSystem) -> dict[str, object]:
    return {
        "system": one.name,
        "corrected_percent": corrected_percent(one.measured),
        "overhead_percent": one.measured.overheads,
        "published_overhead_percent": list(one.measured.system.published.get(_PUBLISHED, ())),
        "kd_cifar": [asdict(figures.kernel) for figures in one.figures],
        "against_none": [asdict(verdict.difference) for verdict in one.verdicts],
    }
