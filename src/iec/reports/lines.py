"""Lines with their 95 % bands, panel beside panel, as an SVG picture: an error over the timesteps, for one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iec.reports.svg import FAINT, INK, dress, plot_style, svg_element

#: Okabe and Ito's colours; black is left for what lines are measured against.
_COLOURS = ("#D55E00", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9")
_PANEL, _HEIGHT = 3.6, 3.3  # width of a panel and height of the axes with their labels, in inches
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.7, 0.15, 0.55, 0.55  # around the axes, in inches
_LINE = 0.2  # a line of the key, in inches
_MARKED = 16  # points up to which each is marked


@dataclass(frozen=True)
class Line:
    """One line: its values at the places `x`, each with its interval [low, high].

    dashed: not what the panel is about, but beside it. colour: a place among the colours; None: its own in the panel.
    Raises ValueError where the lengths differ, a number is not finite, or a value lies outside its interval.
    """

    name: str
    x: Sequence[float]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    dashed: bool = False
    colour: int | None = None

    def __post_init__(self) -> None:
        if not self.x or not len(self.x) == len(self.values) == len(self.low) == len(self.high):
            raise ValueError(f"The line '{self.name}' needs as many values, and ends of intervals, as places.")
        if not all(map(math.isfinite, (*self.x, *self.values, *self.low, *self.high))):
            raise ValueError(f"The line '{self.name}' has a number that is not finite.")
        if not all(a <= b <= c for a, b, c in zip(self.low, self.values, self.high, strict=True)):
            raise ValueError(f"The line '{self.name}' has a value outside its interval.")


@dataclass(frozen=True)
class Panel:
    """One set of axes; `logarithmic`: the values', where 0 has no place and is left out."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    logarithmic: bool = False


def error_panel(title: str, lines: Sequence[Line], y_label: str = "mean squared error of the state") -> Panel:
    """The panel of errors over the sampling steps, as they are numbered: 0 is the first, the noisiest."""
    return Panel(title, "sampling step", y_label, lines, logarithmic=True)


def line_plot(panels: Sequence[Panel]) -> str:
    """An SVG element with the panels side by side and a key below each; the same panels give the same text.

    Raises ValueError without panels, for a panel without lines, or with more lines than there are colours.
    """
    if not panels:
        raise ValueError("A plot needs at least one panel.")
    for panel in panels:
        if not 0 < len(panel.lines) <= len(_COLOURS):
            raise ValueError(f"The panel '{panel.title}' needs 1 to {len(_COLOURS)} lines, not {len(panel.lines)}.")
    width = _PANEL * len(panels)
    height = _HEIGHT + _LINE * (max(len(panel.lines) for panel in panels) + 0.5)
    with plot_style():
        figure = Figure(figsize=(width, height), dpi=72)
        for index, panel in enumerate(panels):
            left, bottom = index * _PANEL + _LEFT, height - _HEIGHT + _BOTTOM
            size = (_PANEL - _LEFT - _RIGHT) / width, (_HEIGHT - _TOP - _BOTTOM) / height
            axes = figure.add_axes((left / width, bottom / height, *size))
            _draw(axes, panel)
            for place, line in enumerate(panel.lines):
                y = 1 - (_HEIGHT + _LINE * (place + 0.5)) / height
                _draw_key(figure, line, _colour(line, place), left / width, y, width)
        return svg_element(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    # `parse_math` off everywhere: a dollar sign in a user's label is only a dollar sign.
    left = -(_LEFT - 0.1) * 72
    for text, y, weight in ((panel.title, 25, "bold"), (panel.y_label, 9, "normal")):
        axes.annotate(
            text,
            (0, 1),
            (left, y),
            "axes fraction",
            "offset points",
            color=INK,
            fontweight=weight,
            fontsize=9.5,
            parse_math=False,
        )
    axes.set_xlabel(panel.x_label, color=INK, parse_math=False)
    dress(axes)
    positive = [value for line in panel.lines for value in line.values if value > 0]
    least = -math.inf
    if panel.logarithmic and positive:
        least = min(positive) / 2
        axes.set_yscale("log")
        axes.set_ylim(least, 2 * max(value for line in panel.lines for value in line.high))
    for place, line in enumerate(panel.lines):
        colour = _colour(line, place)
        shown = [value if value > least else math.nan for value in line.values]
        low, high = ([max(value, least) for value in ends] for ends in (line.low, line.high))
        marker = "o" if len(line.x) <= _MARKED else None
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": _dashes(line),
            "linewidth": 1.4,
            "marker": marker,
            "markersize": 4,
        }
        axes.plot(line.x, shown, zorder=3, **look)
        drawn = [value > least for value in line.values]
        axes.fill_between(line.x, low, high, where=drawn, color=colour, alpha=0.18, linewidth=0, zorder=2)


def _draw_key(figure: Figure, line: Line, colour: str, left: float, y: float, width: float) -> None:
    ends = [left, left + 0.28 / width]
    figure.add_artist(Line2D(ends, [y, y], color=colour, linewidth=1.4, linestyle=_dashes(line)))
    figure.text(left + 0.38 / width, y, line.name, color=FAINT, fontsize=9, va="center_baseline", parse_math=False)


def _colour(line: Line, place: int) -> str:
    return _COLOURS[place if line.colour is None else line.colour]


def _dashes(line: Line) -> str:
    return "--" if line.dashed else "-"
