import re

import pytest
from rich.console import Console

from iec.reports.table import Column, Row, Table, to_markdown, to_rich

COLUMNS = (Column("setting", "left"), Column("cost", note="evaluations"), Column("verdict", "center"))
TABLE = Table(
    "Rivals at equal cost",
    COLUMNS,
    (
        Row(("full precision", "100.0", ""), "reference", "reference"),
        Row(("DeepCache N=5", "36.0", "worse"), "lose", "cheap"),
        Row(("corrected", "40.0", "better"), "win", "cheap"),
        Row(("plain", "40.5", "worse"), "", "cheap"),
    ),
    ("Cost counts full evaluations.",),
)


def printed(table: Table, width: int) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(to_rich(table))
    return capture.get()


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("cells", [("only one",), ("a", "b", "c", "d"), ()])
def test_a_row_of_another_width_is_refused_in_one_sentence(cells: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"^Row 1 of the table 'T' has \d cells, but the table has 3 columns\.$"):
        Table("T", COLUMNS, (Row(("a", "b", "c")), Row(cells)))


def test_markdown_has_the_columns_rows_groups_and_notes() -> None:
    text = to_markdown(TABLE)
    assert markdown_cells(text) == [
        ["setting", "cost (evaluations)", "verdict"],
        [":" + "-" * 15, "-" * 17 + ":", ":" + "-" * 8 + ":"],
        ["**reference**", "", ""],
        ["*full precision*", "*100.0*", ""],
        ["**cheap**", "", ""],
        ["DeepCache N=5", "36.0", "worse"],
        ["**corrected**", "**40.0**", "**better**"],
        ["plain", "40.5", "worse"],
    ]
    assert text.startswith("**Rivals at equal cost**\n\n|")
    assert text.endswith("\n\nCost counts full evaluations.\n")
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_markdown_shows_special_characters_as_they_are() -> None:
    table = Table("", (Column("a", "left"),), (Row(("x|y <b> *z* ~1\nnext",)),))
    assert markdown_cells(to_markdown(table))[2] == [r"x\|y \<b> \*z\* \~1 next"]


def test_a_table_without_rows_is_printed() -> None:
    table = Table("none", COLUMNS, ())
    assert markdown_cells(to_markdown(table))[0] == ["setting", "cost (evaluations)", "verdict"]
    assert "setting" in printed(table, 100)


def test_the_terminal_shows_every_cell_and_a_line_between_groups() -> None:
    lines = printed(TABLE, 100).splitlines()
    position = {
        text: next(i for i, line in enumerate(lines) if text in line) for text in ("100.0", "36.0", "40.0", "40.5")
    }
    rules = [i for i, line in enumerate(lines) if "───" in line]
    assert any(position["100.0"] < rule < position["36.0"] for rule in rules)
    assert not any(position["36.0"] < rule < position["40.5"] for rule in rules)
    assert lines[position["40.0"]].split() == ["corrected", "40.0", "better"]
    assert "Cost counts full evaluations." in lines[-1]


def test_the_terminal_never_reads_cells_as_markup() -> None:
    table = Table("[red]t[/red]", (Column("[b]c[/b]"),), (Row(("[/] [bold]x[/bold]",), group="[g]"),), ("[n]",))
    text = printed(table, 100)
    assert all(part in text for part in ("[red]t[/red]", "[b]c[/b]", "[/] [bold]x[/bold]", "[g]", "[n]"))


def test_a_narrow_terminal_wraps_texts_but_never_numbers() -> None:
    name = "a rather long description of a setting that cannot fit into one line"
    columns = (Column("setting", "left"), Column("error", note="mean with its interval"), Column("cost"))
    text = printed(Table("", columns, (Row((name, "0.0102 [0.0094, 0.0113]", "40.0")),)), 60)
    assert "0.0102 [0.0094, 0.0113]" in text
    assert "40.0" in text
    assert name not in text
    assert set(name.split()) <= set(text.split())
