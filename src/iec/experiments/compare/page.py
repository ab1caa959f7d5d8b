"""A comparison as compare.md, compare.json, compare.svg and compare.html."""

import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from iec.evaluation.per_image import recorded
from iec.experiments.compare.request import cache_of
from iec.experiments.compare.running import ComparedRow, Comparison, same_network
from iec.experiments.compare.tables import (
    contest_table,
    control_table,
    main_table,
    plot_points,
    verdict_sentence,
)
from iec.experiments.corrections import describe_correction
from iec.experiments.figures.errors import error_line
from iec.experiments.plans import technique_settings
from iec.experiments.results import machine
from iec.experiments.rows import Verdict
from iec.experiments.settings import describe, quantizes
from iec.reports.grid import picture_grid, png_bytes, thumbnails
from iec.reports.html import PictureSection, PlotSection, Report, Section, TableSection, TextSection, write_html
from iec.reports.lines import error_panel, line_plot
from iec.reports.plot import pareto_front, quality_cost_plot
from iec.reports.slider import Pair, SliderSection
from iec.reports.table import to_markdown
from iec.storage.files import write_json, write_text

_GRID_IMAGES, _PAIRS = 12, 8
#: Pixels up to which the images of the grid are drawn twice as large.
_DRAWN_LARGER = 64
_LEAD = (
    "Iterative error correction (IEC) evaluates the network again at the state it has just reached; a calibrated or "
    "Adams' correction changes the outputs that are made anyway. Whether either pays depends on what the same "
    "evaluations buy otherwise on the same network: a smaller cache interval, more steps, another solver, or another "
    "correction. This page puts them side by side, at measured cost, from the same seeds."
)


def write_comparison(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Write the four files into `folder` and return their paths."""
    paths = {kind: folder / f"compare.{kind}" for kind in ("md", "json", "svg", "html")}
    plot = comparison_plot(comparison)
    write_text(paths["svg"], plot)
    write_text(paths["md"], comparison_markdown(comparison))
    write_html(comparison_report(comparison, plot), paths["html"])
    write_json(paths["json"], comparison_json(comparison))
    return paths


def comparison_plot(comparison: Comparison) -> str:
    """The kernel distance against cost, as SVG."""
    return quality_cost_plot(plot_points(comparison), f"{comparison.request.titles.kernel} x1000")


def comparison_markdown(comparison: Comparison) -> str:
    """The whole page; its plot lies beside it."""
    tables = (main_table(comparison), contest_table(comparison), control_table(comparison))
    facts = "\n".join(f"- {name}: {value}" for name, value in _facts(comparison))
    parts = [
        f"# What correction is worth: {comparison.request.plain.label}",
        f"**{verdict_sentence(comparison)}**",
        _LEAD,
        f"![{comparison.request.titles.kernel} against cost](compare.svg)",
        *map(to_markdown, tables),
        f"Settings:\n\n{facts}",
    ]
    return "\n\n".join(parts) + "\n"


def comparison_report(comparison: Comparison, plot: str) -> Report:
    """The whole page as HTML."""
    sections: list[Section] = [
        TextSection("Verdict", (verdict_sentence(comparison),)),
        PlotSection("Quality against cost", plot, f"{comparison.request.titles.kernel} against cost for every row"),
        TableSection(contest_table(comparison)),
        TableSection(main_table(comparison)),
        TableSection(control_table(comparison)),
        *_errors(comparison),
        *_sliders(comparison),
        PictureSection(
            "The same seeds in every row",
            png_bytes(_grid(comparison)),
            f"The first {_GRID_IMAGES} images of full precision, the model, and each corrector with its best rival",
            "One row per setting, one column per seed.",
        ),
    ]
    title = f"What correction is worth: {comparison.request.plain.label}"
    return Report(title, (_LEAD,), _facts(comparison), sections)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    request = comparison.request
    front = {point.label for point in pareto_front(plot_points(comparison))}
    rows = [
        {
            "role": row.role,
            **row.stored.record,
            "sampler": row.setting.sampler.to_dict(),
            "correction": None if row.setting.correction is None else row.setting.correction.to_dict(),
            "same_network": same_network(row.setting, request),
            "pareto_front": row.setting.label in front,
            _key(request.titles.kernel): _figure(row, row.kernel),
            _key(request.titles.frechet): _figure(row, row.frechet),
            "psnr": _figure(row, row.psnr),
        }
        for row in comparison.rows
    ]
    return {
        "verdict": verdict_sentence(comparison),
        "settings": {
            "model": request.model or "embedded",
            "technique": technique_settings(request.technique),
            "corrections": [correction.to_dict() for correction in request.corrections],
            "num_steps": request.num_steps,
            "spacing": request.spacing,
            "images": request.images,
            "seed": request.seed,
            "tuning_images": request.tuning_images,
            "batch_size": request.batch_size,
            "dtype": request.dtype,
            "features": request.features,
            "inputs": recorded(request.inputs),
            "calibration": asdict(request.calibration),
            "cached_fraction": comparison.unit.cached_fraction,
        },
        "contests": [
            {
                "setting": contest.ours.setting.label,
                "best": _verdict(contest.best),
                "rivals": [_verdict(verdict) for verdict in contest.verdicts],
            }
            for contest in comparison.contests
        ],
        "controls": [{"setting": setting.label, **_verdict(verdict)} for setting, verdict in comparison.controls],
        "error_over_steps": [
            {"setting": setting.label, "images": request.error_images, "mean_squared_error": [asdict(s) for s in steps]}
            for setting, steps in comparison.errors
        ],
        "rows": rows,
    }


def _figure(row: ComparedRow, estimate: Any) -> dict[str, Any] | None:
    return None if estimate is None else {**asdict(estimate), "images": len(row.stored.images)}


def _key(title: str) -> str:
    """`kd_cifar` of KD-cifar."""
    return title.lower().replace("-", "_")


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"rival": verdict.rival.label, "outcome": verdict.outcome, "kd_difference": asdict(verdict.difference)}


def _grid(comparison: Comparison) -> Image.Image:
    rows = [(row.setting.label, thumbnails(_first(row, _GRID_IMAGES))) for row in _pictured(comparison)]
    return picture_grid(rows, scale=2 if rows[0][1].shape[2] <= _DRAWN_LARGER else 1)


def _pictured(comparison: Comparison) -> list[ComparedRow]:
    """Full precision, the model, and every corrected row with its best rival, each once."""
    request = comparison.request
    settings = [comparison.rows[0].setting, request.plain]
    for contest in comparison.contests:
        settings += [contest.ours.setting, contest.best.rival]
    return [comparison.row(setting) for setting in dict.fromkeys(settings)]


def _errors(comparison: Comparison) -> list[Section]:
    """One panel per corrector; the dashed line is full precision with it, which the solver alone moves."""
    if not comparison.errors:
        return []
    request, errors = comparison.request, dict(comparison.errors)
    panels = []
    for setting, correction in zip(request.corrected, request.corrections, strict=True):
        control = replace(setting, technique=None)
        named = [
            (request.plain, "without correction"),
            (setting, "with correction"),
            (control, "full precision, corrected"),
        ]
        lines = {one: error_line(name, errors[one], one == control) for one, name in named if one in errors}
        panels.append(error_panel(describe_correction(correction), list(lines.values())))
    caption = (
        f"{request.plain.label}: mean squared error of the state after every step against full precision without "
        f"correction, over {request.error_images} images, with 95 % intervals. A correction that removes the solver's "
        "error too leaves that run, as the dashed line shows."
    )
    title = "The error over the sampling steps"
    return [PlotSection(title, line_plot(panels), "The error of the state over the sampling steps", caption)]


def _sliders(comparison: Comparison) -> list[Section]:
    plain = comparison.row(comparison.request.plain)
    return [
        SliderSection(
            f"Before and after: {contest.ours.setting.label}",
            "without correction",
            "with correction",
            [
                Pair(f"seed {comparison.request.seed}, image {index}", _png(before), _png(after))
                for index, (before, after) in enumerate(
                    zip(_first(plain, _PAIRS), _first(contest.ours, _PAIRS), strict=True)
                )
            ],
        )
        for contest in comparison.contests
    ]


def _first(row: ComparedRow, count: int) -> torch.Tensor:
    return row.stored.images[:count]


def _png(image: torch.Tensor) -> bytes:
    return png_bytes(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def _facts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    request, unit = comparison.request, comparison.unit
    cached = cache_of(request.technique) is not None
    simulated = ", simulated arithmetic" if quantizes(request.technique) else ""
    return (
        ("model", "the embedded CIFAR-10 UNet" if request.model is None else request.model),
        *((name, str(value)) for name, value in recorded(request.inputs).items()),
        ("made efficient by", f"{describe(request.technique)}{simulated}"),
        ("sampler", f"DDIM, {request.spacing} spacing, eta 0, T={request.num_steps} unless a row says otherwise"),
        ("images per row", f"{request.images}, seed {request.seed}, batches of {request.batch_size}"),
        ("network dtype", f"{request.dtype}; the state is float32"),
        ("plans", f"from {request.calibration.samples} trajectories of seed {request.calibration.seed} + 2000"),
        ("one full evaluation", f"{unit.full / 1e6:.0f} million multiply-adds"),
        *([("one cached evaluation", f"{unit.cached_fraction:.3f} of a full one")] if cached else []),
        (
            "versions",
            f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}",
        ),
        ("machine", machine(row.stored for row in comparison.rows)),
    )
