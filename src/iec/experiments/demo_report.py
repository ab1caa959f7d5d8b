"""The demo's result as a table, a picture grid, a plot and one HTML page."""

import platform
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL.Image import Image

from iec.evaluation.bootstrap import Estimate
from iec.experiments.demo import DemoResult
from iec.experiments.rows import Judged, Verdict
from iec.experiments.settings import Setting, Technique, describe, quantizes
from iec.experiments.spread import difference_spread, kernel_spread, psnr_spread, spread
from iec.reports.grid import picture_grid, png_bytes, save_png
from iec.reports.html import PictureSection, PlotSection, Report, TableSection, TextSection, write_html
from iec.reports.plot import Point, quality_cost_plot
from iec.reports.table import Column, Row, RowStyle, Table
from iec.storage.files import write_json

_COLUMNS = (
    Column("setting", align="left"),
    Column("full", note="evaluations"),
    Column("cached", note="evaluations"),
    Column("cost", note="of full precision"),
    Column("time", note="s"),
    Column("KD-cifar x1000", note="lower is better"),
    Column("FD-cifar", note="lower is better"),
    Column("PSNR", note="fidelity, dB"),
)
_VERDICT_COLUMNS = (
    Column("against", align="left"),
    Column("its cost", note="of full precision"),
    Column("KD-cifar x1000", note="corrected minus rival, paired"),
    Column("correction", align="left"),
)
_GRID_IMAGES = 12


def write_demo(result: DemoResult, folder: Path) -> dict[str, Path]:
    """Write grid.png, report.html and demo.json into `folder`, and return their paths."""
    paths = {"report": folder / "report.html", "grid": folder / "grid.png", "json": folder / "demo.json"}
    grid = demo_grid(result)
    save_png(grid, paths["grid"])
    write_html(demo_html(result, grid), paths["report"])
    write_json(paths["json"], demo_dict(result))
    return paths


def demo_table(result: DemoResult) -> Table:
    """The rows, grouped by what they are."""
    bases = [setting for setting in result.plan.settings if setting in result.plan.bases]
    rest = [setting for setting in result.plan.settings if setting not in bases and setting.correction is None]
    groups = [
        ("efficient", list(bases)),
        ("corrected", list(result.plan.rivals)),
        ("plain rivals of the same cost", rest),
    ]
    rows = tuple(_row(result, setting, name) for name, settings in groups for setting in settings)
    n = result.plan.num_images
    notes = (
        f"{n} images per row, seed {result.seed}; 95 % bootstrap intervals. KD-cifar and FD-cifar use our small "
        "CIFAR-10 network and its test-set features: they are no FID or KID.",
        "KD-cifar is the verdict: a difference counts only where its paired 95 % interval excludes zero. "
        f"FD-cifar is biased upwards at {n} images; compare it within this table only.",
        "PSNR to the full-precision images of the same seeds is fidelity, not quality.",
        f"A cached evaluation costs {result.plan.unit.cached_fraction:.3f} of a full one (multiply-adds).",
    )
    title = f"IEC demo: the embedded CIFAR-10 model, T={result.config.num_steps} quad"
    return Table(title, _COLUMNS, rows, notes)


def verdict_table(result: DemoResult) -> Table:
    """Every corrected setting against each of its rivals."""
    styles: dict[str, RowStyle] = {"wins": "win", "loses": "lose", "not separable": ""}
    rows = tuple(
        Row(
            (
                _short(verdict.rival, result),
                _relative_cost(verdict.rival, result),
                difference_spread(verdict.difference),
                verdict.outcome,
            ),
            styles[verdict.outcome],
            f"{setting.label}, cost {_relative_cost(setting, result)}",
        )
        for setting, verdicts in result.verdicts.items()
        for verdict in verdicts
    )
    note = f"{result.plan.num_images} images; a win or a loss is a paired 95 % bootstrap interval that excludes zero."
    return Table("Correction against what the same cost buys otherwise", _VERDICT_COLUMNS, rows, (note,))


def demo_sentences(result: DemoResult) -> list[str]:
    """What the demo says, one sentence for each corrected row."""
    return [
        f"{setting.label} (cost {_relative_cost(setting, result)}) {_against(verdicts, result)}."
        for setting, verdicts in result.verdicts.items()
    ]


def demo_grid(result: DemoResult) -> Image:
    """The first images of every row, same seeds in the same column."""
    order: list[Setting] = [*result.plan.bases, *result.plan.rivals]
    order += [setting for setting in result.plan.settings if setting not in order]
    return picture_grid([(setting.label, result.row(setting).sampled.images[:_GRID_IMAGES]) for setting in order])


def demo_html(result: DemoResult, grid: Image) -> Report:
    """The whole result on one page."""
    points = [_point(result, row) for row in result.rows]
    plot = quality_cost_plot(points, "KD-cifar x1000", "cost per image (full evaluations)")
    lead = (
        "Feature caching makes the model cheaper and worse; iterative error correction (IEC) spends evaluations to win "
        "some of that back. Whether it pays depends on what else the same evaluations could buy: a smaller cache "
        "interval, or more steps. This page compares them on the same model, at the same cost, from the same seeds.",
    )
    return Report(
        "What correction is worth: the demo",
        lead,
        _facts(result),
        (
            TextSection("Verdict", tuple(demo_sentences(result))),
            TableSection(verdict_table(result)),
            TableSection(demo_table(result)),
            PlotSection("Quality against cost", plot, "KD-cifar against cost for every row"),
            PictureSection(
                "The same seeds in every row",
                png_bytes(grid),
                f"The first {_GRID_IMAGES} images of every row",
                "One row per setting, one column per seed.",
            ),
        ),
    )


def demo_dict(result: DemoResult) -> dict[str, Any]:
    """The result as JSON values."""
    rows = [
        {
            "setting": row.sampled.setting.label,
            "num_steps": row.sampled.setting.num_steps,
            "interval": row.sampled.setting.interval,
            "correction": None if (found := row.sampled.setting.correction) is None else found.to_dict(),
            "full_evaluations": row.sampled.full,
            "cached_evaluations": row.sampled.cached,
            "cost": round(row.sampled.cost, 4),
            "seconds": round(row.sampled.seconds, 3),
            "kd_cifar": _interval(row.figures.kernel),
            "fd_cifar": _interval(row.figures.frechet),
            "psnr": None if row.figures.psnr is None else _interval(row.figures.psnr),
            "verdicts": [
                {
                    "rival": verdict.rival.label,
                    "outcome": verdict.outcome,
                    "kd_difference": _interval(verdict.difference),
                }
                for verdict in result.verdicts.get(row.sampled.setting, ())
            ],
        }
        for row in result.rows
    ]
    return {"facts": dict(_facts(result)), "seed": result.seed, "images": result.plan.num_images, "rows": rows}


def _row(result: DemoResult, setting: Setting, group: str) -> Row:
    row = result.row(setting)
    sampled = row.sampled
    cells = (
        setting.label,
        f"{sampled.full}",
        f"{sampled.cached}",
        _relative_cost(setting, result),
        f"{sampled.seconds:.1f}",
        kernel_spread(row.figures.kernel),
        spread(row.figures.frechet, 1, 2),
        psnr_spread(row.figures.psnr),
    )
    return Row(cells, "reference" if setting == result.plan.bases[0] else "", group)


def _against(verdicts: tuple[Verdict, ...], result: DemoResult) -> str:
    parts = []
    for outcome, words in (
        ("wins", "wins over"),
        ("loses", "loses to"),
        ("not separable", f"is not separable with {result.plan.num_images} images from"),
    ):
        names = [
            f"{_short(v.rival, result)} (cost {_relative_cost(v.rival, result)})"
            for v in verdicts
            if v.outcome == outcome
        ]
        if names:
            parts.append(f"{words} {', '.join(names)}")
    return "; ".join(parts)


def _short(setting: Setting, result: DemoResult) -> str:
    if setting == result.plan.bases[0]:
        return "full precision"
    if setting.interval > 1:
        return setting.system
    steps = f"T={setting.num_steps}"
    return f"DDIM {steps}" if setting.technique is None else f"{setting.system} {steps}"


def _relative_cost(setting: Setting, result: DemoResult) -> str:
    return f"{result.row(setting).sampled.cost / result.config.num_steps:.2f}"


def _point(result: DemoResult, row: Judged) -> Point:
    setting, kernel = row.sampled.setting, row.figures.kernel
    if setting.correction is not None:
        kind = "corrected"
    elif setting == result.plan.settings[0]:
        kind = "full precision"
    else:
        kind = "plain cache" if setting.interval > 1 else "plain steps"
    low, high = min(kernel.low, kernel.value), max(kernel.high, kernel.value)
    return Point(setting.label, row.sampled.cost, 1000 * kernel.value, 1000 * low, 1000 * high, kind)


def _facts(result: DemoResult) -> tuple[tuple[str, str], ...]:
    unit = result.plan.unit
    return (
        ("model", "the embedded CIFAR-10 UNet (32x32, unconditional, epsilon prediction)"),
        ("sampler", f"DDIM, quad spacing, eta 0, T={result.config.num_steps} unless a row says otherwise"),
        ("efficient", "; ".join(_technique_fact(setting.technique) for setting in result.plan.bases[1:])),
        ("correction", "IEC as published: relaxation 0.5, one iteration, full steps only, the cache refreshed"),
        ("network dtype", f"{result.config.dtype}; the state is float32"),
        ("images per row", f"{result.plan.num_images}, seed {result.seed}, batches of {result.config.batch_size}"),
        ("one full evaluation", f"{unit.full / 1e6:.0f} million multiply-adds"),
        ("one cached evaluation", f"{unit.cached_fraction:.3f} of a full one"),
        (
            "versions",
            f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}",
        ),
        ("machine", f"{platform.machine()}, {torch.get_num_threads()} workers of one thread each"),
        ("took", f"{result.seconds:.0f} s"),
    )


def _technique_fact(technique: Technique | None) -> str:
    branch = getattr(technique, "branch", None)
    simulated = " (simulated arithmetic)" if quantizes(technique) else ""
    return f"{describe(technique)}{'' if branch is None else f' at branch {branch}'}{simulated}"


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
