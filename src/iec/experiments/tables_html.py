"""A measured table as one HTML file: what came out, the plot, the rows, and the same seeds before and after."""

import platform
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from PIL import Image

from iec.experiments.corrections import describe_correction
from iec.experiments.results import machine
from iec.experiments.tables_report import (
    JudgedSystem,
    JudgedTable,
    lead_sentence,
    plan_sentence,
    quality_plot,
    result_table,
    seed_grid,
)
from iec.method.config import IECConfig
from iec.reports.grid import png_bytes
from iec.reports.html import PictureSection, PlotSection, Report, Section, TableSection, TextSection, write_html
from iec.reports.slider import Pair, SliderSection

_PAIRS = 6


def write_table_html(parts: Sequence[JudgedTable], folder: Path) -> Path:
    """Write the report beside the page of the table, and return its path."""
    path = folder / f"{parts[0].table.name}.html"
    write_html(table_html(parts), path)
    return path


def table_html(parts: Sequence[JudgedTable]) -> Report:
    """The whole table in its parts."""
    table = parts[0].table
    lead = (f"Written by iec reproduce {table.name}; nothing on this page was put in by hand.",)
    sections = [section for part in parts for section in _sections(part)]
    return Report(f"{table.name}: {table.title}" if len(parts) == 1 else table.name, lead, _facts(parts), sections)


def _sections(judged: JudgedTable) -> list[Section]:
    table = judged.table
    what, quality, grid = (
        f"{table.part}: {title}" if table.part else title.capitalize()
        for title in ("what came out", "quality against cost", "the same seeds in every row")
    )
    sliders = [section for one in judged.systems for section in _sliders(one, table.seed)]
    return [
        TextSection(what, (lead_sentence(judged),)),
        PlotSection(
            quality,
            quality_plot(judged),
            "KD-cifar of every row against its cost",
            "KD-cifar over our CIFAR-10 network, lower is better; the cost counts a cached evaluation by its "
            "multiply-adds.",
        ),
        TableSection(result_table(judged)),
        *sliders,
        PictureSection(grid, png_bytes(seed_grid(judged)), "The first images of every row", "One column per seed."),
    ]


def _sliders(one: JudgedSystem, seed: int) -> list[SliderSection]:
    """The system without correction and with the published one, else with the last; none for a single row."""
    settings, rows = one.measured.settings, one.measured.rows
    if len(settings) < 2:
        return []
    published = [i for i, setting in enumerate(settings) if setting.correction == IECConfig.paper()]
    chosen = published[0] if published else len(settings) - 1
    correction = settings[chosen].correction
    assert correction is not None
    pairs = [
        Pair(f"seed {seed}, image {index}", _png(rows[0].images[index]), _png(rows[chosen].images[index]))
        for index in range(min(_PAIRS, len(rows[0].images)))
    ]
    caption = "The same noise, without correction and with it. Drag, or use the arrow keys."
    return [SliderSection(settings[0].label, "without", describe_correction(correction), pairs, caption)]


def _png(image: torch.Tensor) -> bytes:
    """An image uint8 [3, H, W] as a PNG file."""
    return png_bytes(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def _facts(parts: Sequence[JudgedTable]) -> tuple[tuple[str, str], ...]:
    tables = [part.table for part in parts]
    first = tables[0]
    rows = [row for part in parts for one in part.systems for row in one.measured.rows]
    images = dict.fromkeys(f"{table.images}, seed {table.seed}, batches of {table.batch_size}" for table in tables)
    return (
        ("model", "the embedded CIFAR-10 UNet (32x32, unconditional, epsilon prediction)"),
        ("steps", "; ".join(f"{table.num_steps}, {table.spacing}, {table.solver}" for table in tables)),
        ("images per row", "; ".join(images)),
        ("network dtype", f"{first.dtype} on {first.device}; the state is float32"),
        ("plans", "; ".join(dict.fromkeys(map(plan_sentence, tables)))),
        (
            "versions",
            f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}",
        ),
        ("machine", machine(rows)),
    )
