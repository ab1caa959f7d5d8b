"""What every plot shares: its style, and the way from a figure of matplotlib to an SVG element."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, FAINT = "#222222", "#777777"
_SETTINGS = {"svg.fonttype": "path", "svg.hashsalt": "iec", "font.size": 10.0, "axes.edgecolor": "#999999"}


@contextmanager
def plot_style() -> Iterator[None]:
    """While entered, matplotlib draws in our style, whatever it was set to; then it is as before."""
    with matplotlib.style.context("default"):
        matplotlib.rcParams.update(_SETTINGS)
        yield


def dress(axes: Axes) -> None:
    """Only the left and the bottom line, and a faint grid below everything."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=FAINT, labelcolor=INK)
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)


def svg_element(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Inside HTML, the XML declaration and the document type that matplotlib writes have no place.
    text = re.sub(r"<!--.*?-->\s*", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :].strip() + "\n"
