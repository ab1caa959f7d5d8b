"""The paper's figures as data: which systems of which table each shows, and how."""

import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from iec.experiments.tables import ExperimentTable, System, load_tables


@dataclass(frozen=True)
class FigureConfig:
    """One figure; kind: `errors`, `steps` or `grid`; table: what is sampled for it, with only the figure's systems."""

    name: str
    title: str
    kind: str
    table: ExperimentTable


def figure_names() -> list[str]:
    """What `load_figure` knows."""
    return list(_contents())


def load_figure(name: str) -> FigureConfig:
    """The figure of that name from figures.toml. Raises ValueError where there is none, or none yet."""
    found = _contents()
    if name not in found:
        raise ValueError(f"There is no figure '{name}': use {', '.join(found)}.")
    entry = found[name]
    if "comes_with" in entry:
        raise ValueError(
            f"{name} ({entry['title'].lower()}) comes with `{entry['comes_with']}`, which is not there yet."
        )
    [table] = [part for part in load_tables(entry["table"]) if part.part == entry.get("part", part.part)]
    systems = tuple(System(system, {}) for system in entry.get("systems", ())) or table.systems
    images = entry.get("images", table.images)
    return FigureConfig(
        name, entry["title"], entry["kind"], replace(table.as_published(), systems=systems, images=images)
    )


def _contents() -> dict[str, Any]:
    return tomllib.loads((files("iec.experiments.figures") / "figures.toml").read_text(encoding="utf-8"))
