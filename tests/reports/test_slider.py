import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from iec.reports.grid import png_bytes
from iec.reports.html import Report, TextSection, to_html
from iec.reports.slider import Pair, SliderSection

EVIL = "<script>alert(\"1\")</script> & 'x'"


def picture(value: int, size: tuple[int, int] = (32, 32)) -> bytes:
    return png_bytes(Image.new("RGB", size, (value, 0, 255 - value)))


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and of the names below the pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script" and not self.scripts:
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def page(*sections: SliderSection | TextSection) -> Elements:
    return Elements(to_html(Report("r", sections=sections)))


def slider(size: tuple[int, int] = (32, 32), name: str = "DeepCache") -> SliderSection:
    pairs = [Pair(f"seed {i}", picture(10 + i, size), picture(200 + i, size)) for i in range(3)]
    return SliderSection("Before and after", name, "corrected", pairs, "Drag.")


def policy_of(elements: Elements) -> str:
    [policy] = [meta["content"] for meta in elements.all("meta") if "http-equiv" in meta]
    return policy


def test_the_policy_allows_exactly_the_script_of_the_sliders() -> None:
    elements = page(slider(), slider())
    [script] = elements.scripts
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sources = re.search(r"script-src ([^;]*)", policy_of(elements))
    assert sources is not None
    assert sources[1] == f"'sha256-{expected}'"
    assert len(elements.all("script")) == 1
    assert elements.all("script")[0] == {}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


def test_a_page_without_sliders_has_no_script_and_allows_none() -> None:
    elements = page(TextSection("t", ("text",)))
    assert elements.all("script") == []
    assert "script-src" not in policy_of(elements)
    assert "default-src 'none'" in policy_of(elements)


def test_every_seed_has_both_pictures_with_their_names_and_a_handle() -> None:
    section = slider(name=EVIL)
    elements = page(section)
    images, inputs = elements.all("img"), elements.all("input")
    assert [image["alt"] for image in images] == [EVIL, "corrected"] * 3
    shown = [base64.b64decode(image["src"].partition(",")[2]) for image in images]
    assert shown == [png for pair in section.pairs for png in (pair.before, pair.after)]
    assert [entry["type"] for entry in inputs] == ["range"] * 3
    assert inputs[1]["aria-label"] == f"seed 1: {EVIL} at the left, corrected at the right"


@pytest.mark.parametrize(
    ("size", "width", "crisp"), [((32, 32), 256, True), ((20, 50), 100, True), ((512, 256), 512, False)]
)
def test_small_pictures_are_enlarged_by_a_whole_factor(size: tuple[int, int], width: int, crisp: bool) -> None:
    divs = page(slider(size)).all("div")
    assert [div["style"] for div in divs if div.get("class") == "pair"] == [f"width:{width}px"] * 3
    assert [div["class"] for div in divs if div.get("class", "").startswith("stack")] == [
        "stack crisp" if crisp else "stack"
    ] * 3


def test_pictures_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="The pictures of 'a' differ in size: 32x32 and 16x32"):
        SliderSection("t", "b", "a", [Pair("a", picture(1), picture(1, (16, 32)))])
    with pytest.raises(ValueError, match="The picture 'a' is not a PNG file"):
        SliderSection("t", "b", "a", [Pair("a", picture(1), b"GIF89a")])
    with pytest.raises(ValueError, match="The slider 't' has no pictures"):
        SliderSection("t", "b", "a", [])
