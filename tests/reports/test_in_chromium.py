"""The page in a real browser: `make slow`."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from iec.reports.grid import picture_grid, png_bytes
from iec.reports.html import PictureSection, PlotSection, Report, TableSection, TextSection, write_html
from iec.reports.plot import Point, quality_cost_plot
from iec.reports.slider import Pair, SliderSection
from iec.reports.table import Column, Row, Table

from .chromium import NAMES, Browser, find_chromium

PROGRAM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=f"None of {', '.join(NAMES)} is on the PATH."),
]
BEFORE, AFTER = (200, 30, 40), (20, 60, 220)
PHONE = 390
LONG = "DeepCache N=10, T=100 with a name_that_goes_on_without_a_single_space_for_longer_than_a_phone_is_wide"


def plain(colour: tuple[int, int, int]) -> bytes:
    return png_bytes(Image.new("RGB", (32, 32), colour))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [Pair(f"seed 0, image {i}", plain(BEFORE), plain(AFTER)) for i in range(4)]
    points = [Point(f"setting {i}", i, 10 - i, 9 - i, 11 - i, "corrected") for i in range(1, 6)]
    grid = picture_grid([(LONG, torch.zeros(12, 3, 32, 32, dtype=torch.uint8))] * 2)
    table = Table(
        "A wide table", tuple(Column(f"column {i}") for i in range(14)), (Row(("12.34 [11.22, 13.44]",) * 14),)
    )
    sections = (
        SliderSection("Sliders", LONG, "corrected", pairs, LONG),
        TableSection(table),
        PlotSection("Plot", quality_cost_plot(points, "KD"), "a plot"),
        PictureSection("Grid", png_bytes(grid), "a grid", LONG),
        TextSection("Text", (LONG,)),
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(Report(LONG, (LONG,), (("a fact", LONG), ("short", "1")), sections), path)
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.complaints.clear()
    return chromium


def box(browser: Browser) -> tuple[float, float, float, float]:
    """Left, top, width and height of the first slider's picture, scrolled into the window."""
    browser.evaluate("document.querySelector('.stack').scrollIntoView({block: 'center'})")
    box = browser.evaluate("document.querySelector('.stack').getBoundingClientRect().toJSON()")
    return box["x"], box["y"], box["width"], box["height"]


def value(browser: Browser) -> float:
    return float(browser.evaluate("document.querySelector('.stack input').value"))


def boundary(browser: Browser) -> float:
    """Where, in parts of the width, the pixels of the first picture change from the one before to the one after."""
    left, top, width, height = box(browser)
    screen = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    row = [screen.getpixel((round(left + x), round(top + height / 4))) for x in range(4, round(width) - 4)]
    colours = [pixel for pixel in row if pixel in (BEFORE, AFTER)]
    assert colours == sorted(colours, key=lambda pixel: pixel == AFTER)
    assert len(colours) > 0.9 * len(row)
    return row.index(AFTER) / width if AFTER in row else 1.0


def test_the_mouse_moves_the_slider(browser: Browser, report: Path) -> None:
    browser.open(report)
    left, top, width, height = box(browser)
    assert boundary(browser) == pytest.approx(0.5, abs=0.05)
    for part in (0.25, 0.8):
        browser.drag((left + width / 2, top + height / 2), (left + part * width, top + height / 2))
        assert value(browser) == pytest.approx(100 * part, abs=2)
        assert boundary(browser) == pytest.approx(part, abs=0.05)
    assert browser.complaints == []


def test_a_finger_moves_the_slider(browser: Browser, report: Path) -> None:
    browser.open(report, PHONE, mobile=True)
    left, top, width, height = box(browser)
    browser.swipe((left + width / 2, top + height / 2), (left + 0.75 * width, top + height / 2))
    assert value(browser) == pytest.approx(75, abs=3)
    assert boundary(browser) == pytest.approx(0.75, abs=0.05)
    assert browser.complaints == []


def test_the_keyboard_moves_the_slider_and_nothing_else(browser: Browser, report: Path) -> None:
    browser.open(report)
    box(browser)
    for _ in range(3):
        browser.press("Tab", 9)
        if browser.evaluate("document.activeElement.matches('.stack input')"):
            break
    browser.press("ArrowRight", 39)
    assert value(browser) == 51
    browser.press("Home", 36)
    assert value(browser) == 0
    assert browser.evaluate("document.activeElement.getAttribute('aria-valuetext')").startswith("0 % ")
    assert boundary(browser) == pytest.approx(0, abs=0.05)
    assert browser.evaluate("[...document.querySelectorAll('.stack input')].map(i => i.value).join()") == "0,50,50,50"
    assert browser.complaints == []


@pytest.mark.parametrize("width", [320, PHONE, 1000])
def test_nothing_overflows_the_window(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width, mobile=width < 1000)
    assert browser.evaluate("window.innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # Only what scrolls by itself, with its contents, may reach further.
    reaching = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
        "e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert reaching == []
    assert browser.complaints == []


def test_another_script_is_refused_and_noticed(browser: Browser, report: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    changed.write_text(report.read_text().replace("</main>", "</main><script>document.title = 'taken'</script>"))
    browser.open(changed)
    assert browser.evaluate("document.title") == LONG
    assert any("Content Security Policy" in text for text in browser.complaints)
