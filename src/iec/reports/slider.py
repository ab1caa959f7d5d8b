"""Two pictures of the same seed on top of each other, with a handle that uncovers the one or the other.

The handle is an ordinary range input that lies invisibly over the picture: mouse, finger and keyboard all move it.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from iec.reports.png import data_uri, png_size

_WIDTH = 256  # pixels up to which a small picture is enlarged, by a whole factor


@dataclass(frozen=True)
class Pair:
    """One seed: its label, and the PNG files before and after."""

    label: str
    before: bytes
    after: bytes


@dataclass(frozen=True)
class SliderSection:
    """Pairs of pictures, one per seed; left of the handle lies `before_name`, right of it `after_name`.

    Raises ValueError without pairs, for bytes that are no PNG, or where the two pictures of a pair differ in size.
    """

    title: str
    before_name: str
    after_name: str
    pairs: Sequence[Pair]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"The slider '{self.title}' has no pictures.")
        for pair in self.pairs:
            before, after = png_size(pair.before, pair.label), png_size(pair.after, pair.label)
            if before != after:
                raise ValueError(
                    f"The pictures of '{pair.label}' differ in size: {before[0]}x{before[1]} and {after[0]}x{after[1]}."
                )


def slider_html(section: SliderSection) -> str:
    """The pairs as HTML, every text escaped; the page needs `slider_style`, and `slider_script` at its end."""
    pairs = "".join(_pair(pair, section) for pair in section.pairs)
    return f'<div class="sliders">\n{pairs}</div>\n'


def slider_style() -> str:
    """The style sheet of all sliders of a page."""
    return _resource("slider.css")


def slider_script() -> str:
    """The script of all sliders of a page."""
    return _resource("slider.js")


def script_source(script: str) -> str:
    """What allows exactly this inline script, and no other, in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _resource(name: str) -> str:
    return files("iec.reports").joinpath(name).read_text(encoding="utf-8")


def _pair(pair: Pair, section: SliderSection) -> str:
    width, height = png_size(pair.before, pair.label)
    factor = max(1, _WIDTH // max(width, height))
    crisp = " crisp" if factor > 1 else ""
    before, after = escape(section.before_name), escape(section.after_name)
    label = escape(f"{pair.label}: {section.before_name} at the left, {section.after_name} at the right")
    return (
        f'<div class="pair" style="width:{width * factor}px">\n<p class="seed">{escape(pair.label)}</p>\n'
        f'<div class="stack{crisp}">{_image(pair.before, before, width, height)}'
        f"{_image(pair.after, after, width, height)}"
        f'<input type="range" min="0" max="100" value="50" aria-label="{label}" data-before="{before}"></div>\n'
        f'<p class="names"><span>{before}</span><span>{after}</span></p>\n</div>\n'
    )


def _image(png: bytes, alt: str, width: int, height: int) -> str:
    return f'<img src="{data_uri(png)}" alt="{alt}" width="{width}" height="{height}">'
