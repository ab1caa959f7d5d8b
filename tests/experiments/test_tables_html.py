import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from iec.experiments.results import StoredRow
from iec.experiments.tables import MeasuredSystem, System, load_table
from iec.experiments.tables_html import table_html, write_table_html
from iec.experiments.tables_report import JudgedTable, judge_table
from iec.reports.html import PictureSection, PlotSection, TableSection, TextSection, to_html
from iec.reports.slider import SliderSection

IMAGES = 12


def judged(corrections=("none", "steps=first", "paper"), names=("float", "deepcache:2")):
    """Table 5 with images of noise, no two alike."""
    systems = tuple(System(name, {}) for name in names)
    table = replace(load_table("table5"), num_steps=4, corrections=corrections, systems=systems, images=IMAGES)
    generator = torch.Generator().manual_seed(0)
    measured = []
    for system in systems:
        settings = tuple(table.settings(system))
        rows = tuple(
            StoredRow(
                torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8),
                {"full_evaluations": 4, "cached_evaluations": 0, "cost": 4, "processor_seconds": 1.0, "threads": 1},
            )
            for _ in settings
        )
        measured.append(MeasuredSystem(system, settings, rows))
    return JudgedTable(table, tuple(judge_table(measured, measured[0].rows[0].images)))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def found():
    return judged()


def test_the_page_has_the_verdict_the_plot_the_table_the_sliders_and_the_grid(found):
    report = table_html([found])
    kinds = [type(section) for section in report.sections]
    assert kinds == [TextSection, PlotSection, TableSection, SliderSection, SliderSection, PictureSection]
    assert report.title == "table5: How many steps to correct: quality and overhead in time"
    facts = dict(report.facts)
    assert facts["images per row"] == f"{IMAGES}, seed 0, batches of 32"
    assert facts["steps"] == "4, quad, ddim"


def test_every_slider_shows_a_seed_without_and_with_the_published_correction(found):
    sliders = [section for section in table_html([found]).sections if isinstance(section, SliderSection)]
    for slider, system in zip(sliders, found.systems, strict=True):
        assert slider.title == system.measured.settings[0].label
        assert (slider.before_name, slider.after_name) == ("without", "IEC all")
        assert len(slider.pairs) == 6
        for index, pair in enumerate(slider.pairs):
            assert pair.label == f"seed 0, image {index}"
            without, _, paper = (row.images[index].numpy() for row in system.measured.rows)
            assert (pixels(pair.before) == without).all()
            assert (pixels(pair.after) == paper).all()


def test_a_table_without_the_published_correction_slides_to_its_last():
    found = judged(("none", "iterations=2", "relaxation=0.3"), ("deepcache:2",))
    [slider] = [section for section in table_html([found]).sections if isinstance(section, SliderSection)]
    assert slider.after_name == "IEC all K=1 lambda=0.3"


def test_both_parts_of_a_table_are_on_one_page(found, tmp_path):
    parts = [replace(found, table=replace(found.table, name="table4", part=part)) for part in ("ImageNet", "MS-COCO")]
    path = write_table_html(parts, tmp_path)
    assert path == tmp_path / "table4.html"
    page = path.read_text()
    for title in ("ImageNet: what came out", "MS-COCO: what came out", "MS-COCO: quality against cost"):
        assert f"<h2>{title}</h2>" in page
    assert page.count('type="range"') == 2 * 2 * 6


def test_the_page_needs_nothing_else(found):
    page = to_html(table_html([found]))
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page.replace("xlink:href", "href"))
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 2 * 6 * 2 + 1
    assert all(base64.b64decode(picture, validate=True) for picture in pictures)
