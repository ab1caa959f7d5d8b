"""Quality against cost as an SVG picture, through matplotlib's objects and none of its global state."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iec.reports.labels import Box, place_labels
from iec.reports.svg import FAINT, INK, dress, plot_style, svg_element

Better = Literal["lower", "higher"]
Looks = dict[str, tuple[str, str]]

#: Colour (Okabe and Ito's, told apart by colour-blind readers) and marker of each kind of point.
KINDS = {
    "full precision": ("#000000", "^"),
    "plain steps": ("#0072B2", "o"),
    "plain cache": ("#D55E00", "s"),
    "corrected": ("#009E73", "D"),
}
_SPARE = (("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X"))
_WIDTH, _HEIGHT, _LINE = 7.2, 3.9, 0.215  # the figure without its key, and a line of the key, in inches
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.75, 0.2, 0.45, 0.6  # around the axes, in inches
_SHORT, _LONG = 36, 80  # characters of a label in half the key and in all of it


@dataclass(frozen=True)
class Point:
    """One measured setting: its cost, its value with the interval [low, high], and its kind (see `KINDS`).

    Raises ValueError where a number is not finite or the value lies outside its interval.
    """

    label: str
    cost: float
    value: float
    low: float
    high: float
    kind: str

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.cost, self.value, self.low, self.high))):
            raise ValueError(f"The point '{self.label}' has a number that is not finite.")
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"The value {self.value:g} of the point '{self.label}' lies outside its interval "
                f"[{self.low:g}, {self.high:g}]."
            )


@dataclass(frozen=True)
class _KeyLine:
    """A line of the key: a kind as heading, a numbered label, or what follows of a long label."""

    kind: str
    number: int | None = None
    text: str = ""

    @property
    def is_heading(self) -> bool:
        return not self.number and not self.text


def pareto_front(points: Sequence[Point], better: Better = "lower") -> list[Point]:
    """The points that no other beats in cost or value without losing in the other, cheapest first."""
    sign = 1 if better == "lower" else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, sign * point.value)):
        last = front[-1] if front else None
        if (
            last is None
            or sign * point.value < sign * last.value
            or (point.cost, point.value) == (last.cost, last.value)
        ):
            front.append(point)
    return front


def quality_cost_plot(
    points: Sequence[Point],
    value_label: str,
    cost_label: str = "cost per image (full evaluations)",
    better: Better = "lower",
) -> str:
    """An SVG element that shows every point with its interval, the Pareto front, and a numbered key below.

    The same points give the same text. Raises ValueError without points or with more kinds than there are markers.
    """
    if not points:
        raise ValueError("A plot of quality against cost needs at least one point.")
    looks = _looks(points)
    numbered = sorted(points, key=lambda point: (list(looks).index(point.kind), point.cost))
    with plot_style():
        key = _key_columns(numbered)
        height = _HEIGHT + _LINE * (max(map(len, key)) + 1.5)
        figure = Figure(figsize=(_WIDTH, height), dpi=72)
        left, right = _LEFT / _WIDTH, 1 - _RIGHT / _WIDTH
        bottom, top = 1 - (_HEIGHT - _BOTTOM) / height, 1 - _TOP / height
        axes = figure.add_axes((left, bottom, right - left, top - bottom))
        _draw_axes(axes, value_label, cost_label, better)
        front = pareto_front(numbered, better)
        _draw_points(axes, numbered, looks, front)
        _draw_numbers(axes, numbered, looks, front)
        _draw_key(figure, key, looks)
        return svg_element(figure)


def _looks(points: Sequence[Point]) -> Looks:
    """Colour and marker of each kind that occurs, in the order of the key."""
    present = {point.kind for point in points}
    looks = {kind: look for kind, look in KINDS.items() if kind in present}
    others = list(dict.fromkeys(point.kind for point in points if point.kind not in KINDS))
    if len(others) > len(_SPARE):
        raise ValueError(f"A plot can show {len(_SPARE)} kinds besides {', '.join(KINDS)}, but got {len(others)}.")
    return looks | dict(zip(others, _SPARE, strict=False))


def _draw_axes(axes: Axes, value_label: str, cost_label: str, better: Better) -> None:
    title = f"{value_label} ({better} is better)"
    # `parse_math` off everywhere: a dollar sign in a user's label is only a dollar sign.
    offset = -(_LEFT - 0.1) * 72
    axes.annotate(title, (0, 1), (offset, 10), "axes fraction", "offset points", color=INK, parse_math=False)
    axes.set_xlabel(cost_label, color=INK, parse_math=False)
    dress(axes)
    axes.margins(0.07, 0.1)


def _draw_points(axes: Axes, points: Sequence[Point], looks: Looks, front: Sequence[Point]) -> None:
    # A step, not a slope: between two settings there is none, so the cheaper one is the best on offer.
    axes.step([p.cost for p in front], [p.value for p in front], where="post", color=FAINT, linewidth=0.9, zorder=2)
    for point in points:
        colour, marker = looks[point.kind]
        axes.errorbar(
            point.cost,
            point.value,
            yerr=[[point.value - point.low], [point.high - point.value]],
            color=colour,
            marker=marker,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.8,
            elinewidth=1.3,
            capsize=2.5,
            zorder=3,
        )


def _draw_numbers(axes: Axes, points: Sequence[Point], looks: Looks, front: Sequence[Point]) -> None:
    def at(cost: float, value: float) -> tuple[float, float]:
        x, y = axes.transData.transform((cost, value))
        return float(x), float(y)

    def around(one: tuple[float, float], other: tuple[float, float], margin: float) -> Box:
        (x1, y1), (x2, y2) = one, other
        return min(x1, x2) - margin, min(y1, y2) - margin, max(x1, x2) + margin, max(y1, y2) + margin

    axes.autoscale_view()  # which matplotlib puts off until it draws; places would be those of the limits before
    anchors = [at(point.cost, point.value) for point in points]
    obstacles = [around(anchor, anchor, 5) for anchor in anchors]
    obstacles += [around(at(point.cost, point.low), at(point.cost, point.high), 3) for point in points]
    for one, other in pairwise(front):
        corner = at(other.cost, one.value)
        obstacles += [around(at(one.cost, one.value), corner, 1), around(corner, at(other.cost, other.value), 1)]
    sizes = [(6.5 * len(str(number)), 9.0) for number in range(1, len(points) + 1)]
    bounds = axes.get_window_extent()
    centres = place_labels(anchors, sizes, obstacles, (bounds.x0, bounds.y0, bounds.x1, bounds.y1))
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for number, ((x, y), (left, bottom), point) in enumerate(zip(centres, anchors, points, strict=True), start=1):
        colour = looks[point.kind][0]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 4, "shrinkB": 5}
        axes.annotate(
            str(number),
            (point.cost, point.value),
            (x - left, y - bottom),
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=9,
            fontweight="bold",
            color=colour,
            arrowprops=arrow if math.hypot(x - left, y - bottom) > 18 else None,
            path_effects=halo,
            zorder=4,
        )


def _key_columns(points: Sequence[Point]) -> list[list[_KeyLine]]:
    """The key's lines, in two columns where the labels are short enough."""
    lines: list[_KeyLine] = []
    for number, point in enumerate(points, start=1):
        if number == 1 or points[number - 2].kind != point.kind:
            lines.append(_KeyLine(point.kind))
        first, *others = textwrap.wrap(point.label, _LONG) or [""]
        lines += [_KeyLine(point.kind, number, first), *(_KeyLine(point.kind, None, text) for text in others)]
    if len(lines) < 6 or any(len(line.text) > _SHORT for line in lines):
        return [lines]
    half = (len(lines) + 1) // 2
    half += lines[half - 1].is_heading
    return [lines[:half], lines[half:]]


def _draw_key(figure: Figure, columns: Sequence[Sequence[_KeyLine]], looks: Looks) -> None:
    width, height = figure.get_size_inches()

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, parse_math=False, va="center_baseline", **style)

    for index, column in enumerate(columns):
        left = 0.1 + index * (width - 0.2) / len(columns)
        for place, line in enumerate(column):
            y = _HEIGHT + _LINE * (place + 0.5)
            colour, marker = looks[line.kind]
            if line.is_heading:
                write(left, y, line.kind, color=colour, fontweight="bold", fontsize=9.5)
            if line.number is not None:
                spot = ([(left + 0.1) / width], [1 - (y - 0.01) / height])
                figure.add_artist(Line2D(*spot, color=colour, marker=marker, markersize=6, linestyle="none"))
                write(left + 0.42, y, str(line.number), color=colour, fontweight="bold", fontsize=9.5, ha="right")
            write(left + 0.52, y, line.text, color=INK, fontsize=9.5)
    y = height - 0.14
    figure.add_artist(Line2D([0.1 / width, 0.42 / width], [1 - y / height] * 2, color=FAINT, linewidth=0.9))
    write(0.52, y, "best value so far as the cost grows; bars are intervals", color=FAINT, fontsize=9)
