"""A result table as plain data, drawn for a terminal or as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

Align = Literal["left", "right", "center"]
RowStyle = Literal["", "muted", "win", "lose", "reference"]

_TERMINAL_STYLES = {"": "", "muted": "dim", "win": "bold green", "lose": "red", "reference": "italic"}
_LONGEST_WORD = 12  # characters of a word that a terminal's column keeps on one line
_MARKDOWN_MARKS = {"win": "**", "reference": "*"}


@dataclass(frozen=True)
class Column:
    """A column; `note` is a smaller second line of its heading, such as the unit."""

    title: str
    align: Align = "right"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row: one text per column, how it looks, and the group of neighbouring rows that it belongs to."""

    cells: tuple[str, ...]
    style: RowStyle = ""
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `notes` are sentences printed below it. Raises ValueError for a row of another width."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"Row {index} of the table '{self.title}' has {len(row.cells)} cells, "
                    f"but the table has {len(self.columns)} columns."
                )


def groups(table: Table) -> list[tuple[str, list[Row]]]:
    """The rows as runs of neighbours with the same group, in order."""
    return [(name, list(rows)) for name, rows in groupby(table.rows, key=lambda row: row.group)]


def to_rich(table: Table) -> RichTable:
    """The table for a terminal of 100 columns or more; texts are shown as they are, never read as markup."""
    drawn = RichTable(
        title=Text(table.title, style="bold") if table.title else None,
        caption=Text("\n".join(table.notes), style="dim") if table.notes else None,
        box=box.HORIZONTALS,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        header_style="bold",
    )
    for index, column in enumerate(table.columns):
        heading = Text(column.title)
        if column.note:
            heading.append(f"\n{column.note}", style="not bold dim")
        drawn.add_column(
            heading, justify=column.align, vertical="middle", overflow="fold", min_width=_narrowest(table, index)
        )
    for name, rows in groups(table):
        drawn.add_section()
        if name:
            drawn.add_row(Text(name, style="bold", justify="left"))
        for row in rows:
            drawn.add_row(*map(Text, row.cells), style=_TERMINAL_STYLES[row.style])
    return drawn


def to_markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown: winning rows bold, reference rows italic, group names as rows."""
    heading = [_escape(f"{column.title} ({column.note})" if column.note else column.title) for column in table.columns]
    lines = [heading]
    for name, rows in groups(table):
        if name:
            lines.append([_mark(_escape(name), "**"), *[""] * (len(table.columns) - 1)])
        lines += [[_mark(_escape(cell), _MARKDOWN_MARKS.get(row.style, "")) for cell in row.cells] for row in rows]
    widths = [max(3, *(cell_len(line[i]) for line in lines)) for i in range(len(table.columns))]
    rules = [_rule(column.align, width) for column, width in zip(table.columns, widths, strict=True)]
    body = [_line(line, table.columns, widths) for line in lines]
    body.insert(1, f"| {' | '.join(rules)} |")
    title = [_mark(_escape(table.title), "**")] if table.title else []
    return "\n\n".join([*title, "\n".join(body), *map(_escape, table.notes)]) + "\n"


def _narrowest(table: Table, index: int) -> int:
    # Where the terminal is narrow, texts and headings wrap; a number broken over two lines would be misread.
    column, cells = table.columns[index], [row.cells[index] for row in table.rows]
    numbers, texts = (cells, []) if column.align == "right" else ([], cells)
    words = " ".join([column.title, column.note, *texts]).split()
    return max([1, *map(cell_len, numbers), *(min(_LONGEST_WORD, cell_len(word)) for word in words)])


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        space = width - cell_len(cell)
        left = {"left": 0, "right": space, "center": space // 2}[column.align]
        padded.append(" " * left + cell + " " * (space - left))
    return f"| {' | '.join(padded)} |"


def _rule(align: Align, width: int) -> str:
    return {"left": ":" + "-" * (width - 1), "right": "-" * (width - 1) + ":", "center": f":{'-' * (width - 2)}:"}[
        align
    ]


def _escape(text: str) -> str:
    return re.sub(r"([\\|*_`~<])", r"\\\1", text).replace("\n", " ")


def _mark(text: str, mark: str) -> str:
    return f"{mark}{text}{mark}" if text.strip() else text
