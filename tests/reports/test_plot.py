import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iec.reports import plot
from iec.reports.labels import place_labels
from iec.reports.plot import KINDS, Better, Point, pareto_front, quality_cost_plot


def point(cost: float, value: float, kind: str = "corrected", label: str = "p") -> Point:
    return Point(label, cost, value, value - 0.5, value + 0.5, kind)


POINTS = [
    point(100, 12, "full precision", "full precision, 100 steps"),
    *(point(n, 12 + 200 / n, "plain steps", f"{n} steps") for n in (20, 30, 40, 50)),
    *(point(30 + n, 20 - n / 4, "plain cache", f"cache {n}") for n in (2, 5)),
    *(point(33 + n, 16 - n / 4, label=f"corrected {n}") for n in (2, 5)),
]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12), st.sampled_from(["lower", "higher"]))
def test_the_front_is_what_brute_force_finds(pairs: list[tuple[int, int]], better: Better) -> None:
    points = [point(cost, value, label=str(i)) for i, (cost, value) in enumerate(pairs)]
    sign = 1 if better == "lower" else -1

    def beats(one: Point, other: Point) -> bool:
        no_worse = one.cost <= other.cost and sign * one.value <= sign * other.value
        return no_worse and (one.cost, one.value) != (other.cost, other.value)

    expected = {p.label for p in points if not any(beats(q, p) for q in points)}
    front = pareto_front(points, better)
    assert {p.label for p in front} == expected
    assert len(front) == len(expected)
    assert [p.cost for p in front] == sorted(p.cost for p in front)


def test_the_svg_is_one_parsable_element_without_a_foreign_address() -> None:
    svg = quality_cost_plot(POINTS, "FID")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    without_namespaces = svg.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "http" not in without_namespaces
    assert "date" not in svg


def test_the_same_points_give_the_same_svg_whatever_matplotlib_is_set_to() -> None:
    first = quality_cost_plot(POINTS, "FID")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert quality_cost_plot(POINTS, "FID") == first
        assert dict(matplotlib.rcParams) == before


def test_each_kind_that_occurs_has_its_own_colour() -> None:
    svg = quality_cost_plot(POINTS, "FID").lower()
    assert len(set(KINDS.values())) == len(KINDS)
    assert all(colour.lower() in svg for colour, _ in KINDS.values() if colour != "#000000")
    assert KINDS["plain cache"][0].lower() not in quality_cost_plot(POINTS[:3], "FID").lower()


def test_markers_lie_where_their_numbers_say() -> None:
    points = [point(10, 5, "plain steps"), point(20, 9, "plain steps"), point(40, 6, "plain steps")]
    uses = re.findall(
        r'x="([\d.]+)" y="([\d.]+)" style="fill: #0072b2; stroke: #ffffff', quality_cost_plot(points, "v")
    )
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in uses]
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, rel=1e-3)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(1 / 4, rel=1e-3)
    assert y1 < y2 < y0


def test_other_kinds_get_spare_looks_until_none_is_left() -> None:
    others = [point(i, i, kind=f"kind {i}") for i in range(3)]
    assert quality_cost_plot(others, "FID").lower().count("#e69f00") > 0
    with pytest.raises(ValueError, match="can show 3 kinds besides"):
        quality_cost_plot([*others, point(9, 9, kind="kind 9")], "FID")


def test_the_picture_grows_with_its_key() -> None:
    def height(points: list[Point]) -> float:
        return float(ElementTree.fromstring(quality_cost_plot(points, "FID")).attrib["height"].removesuffix("pt"))

    long = [*POINTS[:-1], point(50, 50, label="a label that is as long as a whole paragraph and more " * 4)]
    assert height(POINTS[:1]) < height(POINTS) < height(long)


@pytest.mark.parametrize("label", ["a $x^$ \\frac{", "<script>alert(1)</script>", "a -- b --> c", "", "λ ± 3 × 5"])
def test_any_label_can_be_drawn(label: str) -> None:
    svg = quality_cost_plot([point(1, 1, label=label)], label or "value", cost_label=label, better="higher")
    assert "script" not in svg
    ElementTree.fromstring(svg)


def test_points_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"The value 3 of the point 'p' lies outside its interval \[1, 2\]\."):
        Point("p", 1, 3, 1, 2, "corrected")
    with pytest.raises(ValueError, match="has a number that is not finite"):
        Point("p", 1, float("nan"), 1, 2, "corrected")
    with pytest.raises(ValueError, match="needs at least one point"):
        quality_cost_plot([], "FID")


def test_pyplot_is_never_loaded() -> None:
    code = (
        "import sys, iec.reports.html, iec.reports.plot as p; p.quality_cost_plot([p.Point('a', 1, 1, 1, 1, 'b')], 'v')"
    )
    code += "; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_are_placed_beside_their_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def place(anchors: Any, sizes: Any, obstacles: Any, bounds: Any) -> Any:
        told.append((anchors, bounds))
        return place_labels(anchors, sizes, obstacles, bounds)

    monkeypatch.setattr(plot, "place_labels", place)
    quality_cost_plot([Point(str(cost), cost, cost, cost - 1, cost + 1, "plain steps") for cost in (10, 15, 20)], "KD")
    [(anchors, (left, bottom, right, top))] = told
    assert all(left < x < right and bottom < y < top for x, y in anchors)
    # Costs 10, 15 and 20 lie evenly, and over most of the width.
    assert anchors[1][0] - anchors[0][0] == pytest.approx(anchors[2][0] - anchors[1][0])
    assert anchors[2][0] - anchors[0][0] > 0.8 * (right - left)
