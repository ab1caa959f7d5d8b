import math
import re
from xml.etree import ElementTree

import matplotlib
import pytest

from iec.reports.html import PlotSection
from iec.reports.lines import Line, Panel, error_panel, line_plot


def line(values: list[float], name: str = "without", spread: float = 1.2, dashed: bool = False) -> Line:
    return Line(name, range(len(values)), values, [v / spread for v in values], [v * spread for v in values], dashed)


def drawn(svg: str, colour: str) -> list[tuple[float, float]]:
    """The places of the line of this colour, x to the right and y downwards."""
    found = re.search(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: {colour}', svg)
    assert found is not None
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", found[1])]


def test_a_factor_is_the_same_distance_everywhere_on_an_error_panel() -> None:
    svg = line_plot([error_panel("W8A8", [line([1e-4, 1e-3, 1e-1])])])
    (x0, y0), (x1, y1), (x2, y2) = drawn(svg, "#d55e00")
    assert x2 - x1 == pytest.approx(x1 - x0, rel=1e-3)
    assert (y1 - y2) / (y0 - y1) == pytest.approx(2, rel=1e-2)


def test_a_plain_panel_is_linear() -> None:
    (_, y0), (_, y1), (_, y2) = drawn(line_plot([Panel("t", "x", "y", [line([1, 3, 9])])]), "#d55e00")
    assert (y1 - y2) / (y0 - y1) == pytest.approx(3, rel=1e-2)


def test_no_error_at_all_has_no_place_on_a_logarithmic_axis() -> None:
    points = drawn(line_plot([error_panel("cache", [line([0.0, 0.0, 1e-3, 2e-3])])]), "#d55e00")
    assert len(points) == 2


def test_lines_without_any_error_are_drawn_flat() -> None:
    assert "nan" not in line_plot([error_panel("nothing", [line([0.0, 0.0])])])


def test_panels_have_their_lines_keys_and_bands() -> None:
    panels = [error_panel(f"p{i}", [line([1, 2]), line([1, 1.5], "with", dashed=True)]) for i in range(3)]
    svg = line_plot(panels)
    sizes = [ElementTree.fromstring(line_plot(panels[:n])).attrib["width"].removesuffix("pt") for n in (1, 3)]
    assert float(sizes[1]) == pytest.approx(3 * float(sizes[0]))
    assert svg.count("fill-opacity: 0.18") == 6
    assert svg.count("stroke-dasharray") == 3 * 2  # the line and its key
    PlotSection("p", svg, "alt")


def test_the_same_panels_give_the_same_svg_whatever_matplotlib_is_set_to() -> None:
    panels = [error_panel("a", [line([1, 2])])]
    first = line_plot(panels)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        assert line_plot(panels) == first


@pytest.mark.parametrize("text", ["a $x^$ \\frac{", "<script>alert(1)</script>", "", "λ ± 3 × 5"])
def test_any_text_can_be_drawn(text: str) -> None:
    svg = line_plot([Panel(text, text, text, [line([1, 2], text)])])
    assert "script" not in svg
    ElementTree.fromstring(svg)


def test_lines_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="needs as many values"):
        Line("a", [0, 1], [1], [1], [1])
    with pytest.raises(ValueError, match="needs as many values"):
        Line("a", [], [], [], [])
    with pytest.raises(ValueError, match="not finite"):
        Line("a", [0], [1], [1], [math.inf])
    with pytest.raises(ValueError, match="outside its interval"):
        Line("a", [0], [3], [1], [2])
    with pytest.raises(ValueError, match="at least one panel"):
        line_plot([])
    with pytest.raises(ValueError, match="The panel 'p' needs 1 to 6 lines, not 7"):
        line_plot([Panel("p", "x", "y", [line([1, 2])] * 7)])
