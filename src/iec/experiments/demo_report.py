"""The demo's result as a table, a picture grid, a plot and one HTML page."""

import platform
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL.Image import Image

from iec.evaluation.bootstrap import Estimate
from iec.experiments.corrections import FittedCorrection, correction_settings, describe_correction
from iec.experiments.demo import DemoResult
from iec.experiments.rows import Judged, Verdict
from iec.experiments.settings import Setting, Technique, describe, quantizes
from iec.experiments.spread import difference_spread, kernel_spread, psnr_spread, spread
from iec.method.config import IECConfig
from iec.reports.grid import picture_grid, png_bytes, save_png
from iec.reports.html import PictureSection, PlotSection, Report, TableSection, TextSection, write_html
from iec.reports.plot import Point, quality_cost_plot
from iec.reports.table import Column, Row, RowStyle, Table
from iec.storage.files import write_json

_COLUMNS = (
    Column("setting", align="left"),
    Column("full", note="evaluations"),
    Column("cached", note="evaluations"),
    Column("cost", note="full evaluations"),
    Column("time", note="s"),
    Column("KD-cifar x1000", note="lower is better"),
    Column("FD-cifar", note="lower is better"),
    Column("PSNR", note="fidelity, dB"),
)
_VERDICT_COLUMNS = (
    Column("against", align="left"),
    Column("its cost", note="full evaluations"),
    Column("KD-cifar x1000", note="corrected minus rival, paired"),
    Column("correction", align="left"),
)
_GRID_IMAGES, _GRID_ROWS = 12, 8


def write_demo(result: DemoResult, folder: Path) -> dict[str, Path]:
    """Write grid.png, report.html and demo.json into `folder`, and return their paths."""
    paths = {"report": folder / "report.html", "grid": folder / "grid.png", "json": folder / "demo.json"}
    grid = demo_grid(result)
    save_png(grid, paths["grid"])
    write_html(demo_html(result, grid), paths["report"])
    write_json(paths["json"], demo_dict(result))
    return paths


def demo_table(result: DemoResult) -> Table:
    """The rows, grouped by the system that they belong to."""
    rows = [_row(result, result.plan.reference, "the exact solution, nearly")]
    for system in result.plan.systems:
        rows += [_row(result, setting, system.base.label) for setting in system.settings]
    n = result.plan.num_images
    notes = (
        f"{n} images per row, seed {result.seed}; 95 % bootstrap intervals. KD-cifar and FD-cifar use our small "
        "CIFAR-10 network and its test-set features: they are no FID or KID.",
        "KD-cifar is the verdict: a difference counts only where its paired 95 % interval excludes zero. "
        f"FD-cifar is biased upwards at {n} images; compare it within this table only.",
        "PSNR to the first row's images of the same seeds is fidelity to the exact solution, not quality.",
        f"A cached evaluation costs {result.plan.unit.cached_fraction:.3f} of a full one (multiply-adds). Every plan "
        f"is from {result.config.samples} trajectories of other seeds.",
    )
    return Table("IEC demo: the embedded CIFAR-10 model", _COLUMNS, tuple(rows), notes)


def verdict_table(result: DemoResult) -> Table:
    """Every corrected setting against each of its rivals."""
    styles: dict[str, RowStyle] = {"wins": "win", "loses": "lose", "not separable": ""}
    rows = tuple(
        Row(
            (
                verdict.rival.label,
                _cost(verdict.rival, result),
                difference_spread(verdict.difference),
                verdict.outcome,
            ),
            styles[verdict.outcome],
            f"{setting.label}, cost {_cost(setting, result)}",
        )
        for setting, verdicts in result.verdicts.items()
        for verdict in verdicts
    )
    note = f"{result.plan.num_images} images; a win or a loss is a paired 95 % bootstrap interval that excludes zero."
    return Table("Correction against what the same cost buys otherwise", _VERDICT_COLUMNS, rows, (note,))


def demo_sentences(result: DemoResult) -> list[str]:
    """What the demo says: each system without correction, then one sentence for each correction of it."""
    sentences = []
    for system in result.plan.systems:
        sentences.append(f"{system.base.label} (cost {_cost(system.base, result)}): {_quality(system.base, result)}.")
        sentences += [
            f"  {describe_correction(setting.correction)} (cost {_cost(setting, result)}): "
            f"{_quality(setting, result)}; it {_against(result.verdicts[setting], result)}."
            for setting in system.corrected
            if setting.correction is not None and setting in result.verdicts
        ]
    return sentences


def demo_grid(result: DemoResult) -> Image:
    """The first images of at most eight rows, same seeds in the same column: the story of every system in four."""
    order = [result.plan.reference]
    for system in result.plan.systems[:2]:
        paper = [s for s in system.corrected if isinstance(s.correction, IECConfig)][:1]
        calibrated = [s for s in system.corrected if isinstance(s.correction, FittedCorrection)][:1]
        order += [system.base, *paper, *calibrated, result.best(system.rivals)]
    return picture_grid(
        [(setting.label, result.row(setting).sampled.images[:_GRID_IMAGES]) for setting in order[:_GRID_ROWS]]
    )


def demo_html(result: DemoResult, grid: Image) -> Report:
    """The whole result on one page."""
    points = [_point(result, row) for row in result.rows]
    plot = quality_cost_plot(points, "KD-cifar x1000", "cost per image (full evaluations)")
    lead = (
        "Quantization and caching make a model cheaper and worse. Iterative error correction (IEC) spends evaluations "
        "to win some of that back; the calibrated correction spends none: a few numbers per step, fitted once, are "
        "applied to the outputs that are computed anyway. This page compares both with what the same cost buys "
        "otherwise, from the same seeds.",
    )
    return Report(
        "What correction is worth: the demo",
        lead,
        _facts(result),
        (
            TextSection("Verdict", tuple(demo_sentences(result))),
            PictureSection(
                "The same seeds in every row",
                png_bytes(grid),
                f"The first {_GRID_IMAGES} images of the rows of the story",
                "One row per setting, one column per seed.",
            ),
            TableSection(verdict_table(result)),
            TableSection(demo_table(result)),
            PlotSection("Quality against cost", plot, "KD-cifar against cost for every row"),
        ),
    )


def demo_dict(result: DemoResult) -> dict[str, Any]:
    """The result as JSON values."""
    rows = [
        {
            "setting": row.sampled.setting.label,
            "num_steps": row.sampled.setting.num_steps,
            "interval": row.sampled.setting.interval,
            "correction": correction_settings(row.sampled.setting.correction, row.sampled.setting.num_steps),
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
        _cost(setting, result),
        f"{sampled.seconds:.1f}",
        kernel_spread(row.figures.kernel),
        spread(row.figures.frechet, 1, 2),
        psnr_spread(row.figures.psnr),
    )
    return Row(cells, "reference" if setting == result.plan.reference else "", group)


def _against(verdicts: tuple[Verdict, ...], result: DemoResult) -> str:
    parts = []
    for outcome, words in (
        ("wins", "wins over"),
        ("loses", "loses to"),
        ("not separable", f"is not separable with {result.plan.num_images} images from"),
    ):
        names = [f"{v.rival.label} (cost {_cost(v.rival, result)})" for v in verdicts if v.outcome == outcome]
        if names:
            parts.append(f"{words} {', '.join(names)}")
    return "; ".join(parts)


def _quality(setting: Setting, result: DemoResult) -> str:
    figures = result.row(setting).figures
    return f"KD-cifar {kernel_spread(figures.kernel)}, PSNR {psnr_spread(figures.psnr)} dB"


def _cost(setting: Setting, result: DemoResult) -> str:
    return f"{result.row(setting).sampled.cost:.1f}"


def _point(result: DemoResult, row: Judged) -> Point:
    setting, kernel = row.sampled.setting, row.figures.kernel
    kind = "corrected" if setting.correction is not None else "plain cache" if setting.interval > 1 else "plain steps"
    low, high = min(kernel.low, kernel.value), max(kernel.high, kernel.value)
    return Point(setting.label, row.sampled.cost, 1000 * kernel.value, 1000 * low, 1000 * high, kind)


def _facts(result: DemoResult) -> tuple[tuple[str, str], ...]:
    unit = result.plan.unit
    return (
        ("model", "the embedded CIFAR-10 UNet (32x32, unconditional, epsilon prediction)"),
        ("sampler", "DDIM, quad spacing, eta 0, unless a row says otherwise"),
        ("efficient", "; ".join(_technique_fact(system.base.technique) for system in result.plan.systems)),
        ("IEC", "as published: relaxation 0.5, one iteration, full steps only, the cache refreshed"),
        ("plans", f"of quantization and of corrections, from {result.config.samples} trajectories of held-out seeds"),
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
