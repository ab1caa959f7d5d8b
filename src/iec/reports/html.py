"""A report as one HTML file that needs nothing else: no network, no fonts, and no script but that of its sliders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

from iec.reports.png import data_uri, png_size
from iec.reports.slider import SliderSection, script_source, slider_html, slider_script, slider_style
from iec.reports.table import Column, Row, Table, groups
from iec.storage.files import write_atomically

_READABLE = 560  # pixels below which a picture with labels scrolls rather than shrinks further
_SHORT = 60  # characters of a fact that shares its line with others


@dataclass(frozen=True)
class TextSection:
    """Paragraphs under a heading."""

    title: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class TableSection:
    """A table; its title is the heading, its notes stand below."""

    table: Table


@dataclass(frozen=True)
class PictureSection:
    """A PNG picture; `alt` says what it shows to whoever cannot see it. Raises ValueError for other bytes."""

    title: str
    png: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        png_size(self.png, self.title)


@dataclass(frozen=True)
class PlotSection:
    """An SVG element from `quality_cost_plot`; `alt` as for a picture. Raises ValueError for any other text."""

    title: str
    svg: str
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        # This is the only text that enters the page unescaped.
        if not self.svg.startswith("<svg") or not _is_drawing(self.svg):
            raise ValueError(f"The plot '{self.title}' is not a plain SVG element.")


Section = TextSection | TableSection | PictureSection | PlotSection | SliderSection


@dataclass(frozen=True)
class Report:
    """A report: a title, leading paragraphs, sections in order, and the facts (name, value) of the run at the end."""

    title: str
    lead: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()


def to_html(report: Report) -> str:
    """The report as one self-contained HTML page; every text is escaped."""
    style = files("iec.reports").joinpath("report.css").read_text(encoding="utf-8")
    sections = [_section(section, f"s{number}") for number, section in enumerate(report.sections, start=1)]
    if report.facts:
        sections.append(_facts(report.facts))
    lead = "".join(f"<p>{escape(text)}</p>\n" for text in report.lead)
    policy, end = "default-src 'none'; img-src data:; style-src 'unsafe-inline'", ""
    if any(isinstance(section, SliderSection) for section in report.sections):
        script = slider_script()
        style += slider_style()
        policy, end = f"{policy}; script-src {script_source(script)}", f"<script>{script}</script>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{escape(report.title)}</h1>\n{lead}</header>\n{''.join(sections)}</main>\n{end}</body>\n</html>\n"
    )


def write_html(report: Report, path: str | Path) -> None:
    """Write the report as one HTML file, atomically."""
    text = to_html(report)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def _is_drawing(svg: str) -> bool:
    try:
        elements = list(ElementTree.fromstring(svg).iter())
    except ElementTree.ParseError:
        return False
    tags = {str(element.tag).rpartition("}")[2].lower() for element in elements}
    attributes = {name.lower() for element in elements for name in element.attrib}
    return not tags & {"script", "foreignobject"} and not any(name.startswith("on") for name in attributes)


def _section(section: Section, name: str) -> str:
    if isinstance(section, TextSection):
        return _wrap(section.title, "".join(f"<p>{escape(text)}</p>\n" for text in section.paragraphs))
    if isinstance(section, TableSection):
        return _wrap(section.table.title, _table(section.table))
    if isinstance(section, PictureSection):
        return _wrap(section.title, _figure(_picture(section), section.caption))
    if isinstance(section, SliderSection):
        return _wrap(section.title, _figure(slider_html(section), section.caption))
    return _wrap(section.title, _figure(_plot(section, name), section.caption))


def _wrap(title: str, body: str) -> str:
    heading = f"<h2>{escape(title)}</h2>\n" if title else ""
    return f"<section>\n{heading}{body}</section>\n"


def _figure(body: str, caption: str) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    return f"<figure>\n{body}{text}</figure>\n"


def _picture(section: PictureSection) -> str:
    width, height = png_size(section.png, section.title)
    return (
        f'<div class="scroll card" tabindex="0"><img src="{data_uri(section.png)}" alt="{escape(section.alt)}" '
        f'width="{width}" height="{height}" style="min-width:{min(width, _READABLE)}px"></div>\n'
    )


def _plot(section: PlotSection, name: str) -> str:
    # Every plot of matplotlib uses the same identifiers, which one page must not repeat.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", section.svg)
    svg = svg.replace("<svg", '<svg aria-hidden="true"', 1)
    label = escape(section.alt)
    return f'<div class="scroll card plot" tabindex="0" role="img" aria-label="{label}">{svg}</div>\n'


def _table(table: Table) -> str:
    head = "".join(_heading(column) for column in table.columns)
    bodies = [
        f"<tbody>\n{_group(name, len(table.columns))}{''.join(_row(row, table.columns) for row in rows)}</tbody>\n"
        for name, rows in groups(table)
    ]
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">\n'
        f"<table>\n<thead>\n<tr>{head}</tr>\n</thead>\n{''.join(bodies)}</table>\n</div>\n{notes}"
    )


def _heading(column: Column) -> str:
    note = f"<small>{escape(column.note)}</small>" if column.note else ""
    return f'<th scope="col" class="{column.align}">{escape(column.title)}{note}</th>'


def _group(name: str, width: int) -> str:
    if not name:
        return ""
    return f'<tr class="group"><th scope="rowgroup" colspan="{width}"><span>{escape(name)}</span></th></tr>\n'


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = [
        f'<td class="{column.align}">{escape(cell)}</td>' if index else _row_heading(cell, column)
        for index, (cell, column) in enumerate(zip(row.cells, columns, strict=True))
    ]
    style = f' class="{row.style}"' if row.style else ""
    return f"<tr{style}>{''.join(cells)}</tr>\n"


def _row_heading(cell: str, column: Column) -> str:
    return f'<th scope="row" class="{column.align}">{escape(cell)}</th>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return _wrap("Settings", f"<dl>\n{''.join(_fact(name, value) for name, value in facts)}</dl>\n")


def _fact(name: str, value: str) -> str:
    style = ' class="wide"' if len(value) > _SHORT else ""
    return f"<div{style}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n"
