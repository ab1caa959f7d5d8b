import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from iec.reports.grid import picture_grid, png_bytes
from iec.reports.html import PictureSection, PlotSection, Report, TableSection, TextSection, to_html, write_html
from iec.reports.plot import Point, quality_cost_plot
from iec.reports.table import Column, Row, Table

EVIL = "<script>alert(\"1\")</script> & 'x'"
PNG = png_bytes(picture_grid([("a", torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4))]))
SVG = quality_cost_plot([Point("a", 1, 2, 1, 3, "corrected"), Point("b", 2, 1, 1, 1, "plain steps")], "FID")
TABLE = Table(
    EVIL,
    (Column(EVIL, "left", EVIL), Column("n")),
    (Row((EVIL, "1"), "win", EVIL), Row(("plain", "2"), "", EVIL), Row(("other", "3"), "muted", "last")),
    (EVIL,),
)
REPORT = Report(
    EVIL,
    (EVIL, "second"),
    ((EVIL, EVIL), ("seed", "0")),
    (
        TableSection(TABLE),
        PictureSection(EVIL, PNG, EVIL, EVIL),
        PlotSection(EVIL, SVG, EVIL, EVIL),
        PlotSection("", SVG, "again"),
        TextSection(EVIL, (EVIL,)),
    ),
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would see, and fails where a tag is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return to_html(REPORT)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_every_text_is_escaped_and_shown(text: str, page: Page) -> None:
    assert "<script" not in text
    shown = [tag for tag, data in page.texts if data == EVIL]
    expected = ["title", "h1", "p", "h2", "th", "small", "span", "th", "p"]  # the head, the lead, the table
    expected += ["h2", "figcaption"] * 2 + ["h2", "p", "dt", "dd"]  # the pictures, the text, the settings
    assert shown == expected
    assert page.all("img")[0]["alt"] == EVIL


def test_the_page_needs_nothing_else(text: str, page: Page) -> None:
    without_namespaces = re.sub(r' xmlns(:xlink)?="http://www\.w3\.org/[\w/]+"', "", text)
    assert "http://" not in without_namespaces
    assert "https://" not in without_namespaces
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    sources = [value for _, attributes in page.elements for name, value in attributes.items() if name == "src"]
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}


def test_the_data_uri_holds_the_same_png(page: Page) -> None:
    [image] = page.all("img")
    assert base64.b64decode((image["src"] or "").partition(",")[2], validate=True) == PNG
    assert (image["width"], image["height"]) == tuple(str(int.from_bytes(PNG[i : i + 4], "big")) for i in (16, 20))


def test_identifiers_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names)) > 0
    references = [attributes.get("xlink:href") or "" for attributes in page.all("use")]
    references += [
        f"#{found}"
        for _, attributes in page.elements
        for found in re.findall(r"url\(#([^)]+)\)", " ".join(filter(None, attributes.values())))
    ]
    assert references
    assert {reference.removeprefix("#") for reference in references} <= set(names)


def test_the_table_has_its_columns_groups_and_styles(page: Page) -> None:
    scopes = [attributes.get("scope") for attributes in page.all("th")]
    assert (scopes.count("col"), scopes.count("rowgroup"), scopes.count("row")) == (2, 2, 3)
    assert [attributes.get("class") for attributes in page.all("tr")] == [None, "group", "win", None, "group", "muted"]
    assert [attributes["class"] for attributes in page.all("td")] == ["right"] * 3
    assert len(page.all("tbody")) == 2


def test_the_page_fits_a_phone_and_both_colour_schemes(text: str, page: Page) -> None:
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text
    assert [attributes["class"] for attributes in page.all("div") if "class" in attributes] == [
        "scroll",
        "scroll card",
        "scroll card plot",
        "scroll card plot",
    ]


def test_an_empty_report_is_a_page() -> None:
    page = Page(to_html(Report("nothing")))
    assert page.all("section") == []
    assert ("h1", "nothing") in page.texts


def test_the_report_is_written_whole(tmp_path: Path, text: str) -> None:
    write_html(REPORT, tmp_path / "out" / "report.html")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == text


def test_bytes_that_are_no_png_are_refused() -> None:
    with pytest.raises(ValueError, match="The picture 'p' is not a PNG file"):
        PictureSection("p", b"GIF89a", "alt")


@pytest.mark.parametrize(
    "svg",
    [
        "<p>no</p>",
        "<svg><script>alert(1)</script></svg>",
        '<svg onload="alert(1)"></svg>',
        "<svg><foreignObject/></svg>",
        "<svg><g></svg>",
    ],
)
def test_a_plot_that_is_no_plain_svg_is_refused(svg: str) -> None:
    with pytest.raises(ValueError, match="The plot 'p' is not a plain SVG element"):
        PlotSection("p", svg, "alt")
