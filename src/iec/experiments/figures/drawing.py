"""A drawn figure: its picture, what it says, and its numbers; written as a page with its picture and JSON beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iec.experiments.figures.config import FigureConfig
from iec.experiments.settings import quantizes
from iec.experiments.tables_report import sampling_sentence
from iec.reports.table import Table, to_markdown
from iec.storage.files import write_atomically, write_json, write_text


@dataclass(frozen=True)
class Drawing:
    """suffix, picture: `.svg` or `.png` with the file's bytes. sentences: what the numbers say. alt: what it shows."""

    suffix: str
    picture: bytes
    alt: str
    sentences: Sequence[str]
    table: Table
    numbers: dict[str, Any] = field(default_factory=dict)


def write_figure(figure: FigureConfig, drawing: Drawing, folder: Path) -> list[Path]:
    """Write the page, the picture and the numbers into `folder`; returns their paths in that order."""
    paths = [folder / f"{figure.name}{suffix}" for suffix in (".md", drawing.suffix, ".json")]
    write_text(paths[0], figure_markdown(figure, drawing))
    write_atomically(paths[1], lambda path: _write(path, drawing.picture))
    write_json(paths[2], figure_json(figure, drawing))
    return paths


def figure_markdown(figure: FigureConfig, drawing: Drawing) -> str:
    """The page."""
    parts = [
        f"# {figure.name}: {figure.title}",
        f"Written by `iec reproduce {figure.name}`; nothing on this page was put in by hand.",
        *drawing.sentences,
        f"![{drawing.alt}]({figure.name}{drawing.suffix})",
        to_markdown(drawing.table),
        settings_sentence(figure),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def figure_json(figure: FigureConfig, drawing: Drawing) -> dict[str, Any]:
    """The numbers as JSON values."""
    table = figure.table
    settings = {"num_steps": table.num_steps, "spacing": table.spacing, "images": table.images, "seed": table.seed}
    return {
        "figure": figure.name,
        "title": figure.title,
        **settings,
        "dtype": table.dtype,
        "sentences": list(drawing.sentences),
        **drawing.numbers,
    }


def settings_sentence(figure: FigureConfig) -> str:
    """How it was sampled."""
    table = figure.table
    simulated = any(quantizes(table.settings(system)[0].technique) for system in table.systems)
    return f"{sampling_sentence(table)}{' Quantized arithmetic is simulated.' if simulated else ''}"


def _write(path: Path, picture: bytes) -> None:
    path.write_bytes(picture)
