import json
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_unet

import iec
from iec.efficient import DeepCacheConfig
from iec.experiments import measuring
from iec.experiments.plans import Calibration
from iec.experiments.settings import Setting
from iec.experiments.tables import System, full_precision, load_table, measure_table, table_names
from iec.experiments.tables_report import judge_table, result_table, write_table
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler


def tiny_pipeline(spacing="quad", **settings):
    unet = tiny_unet(sample_size=32, block_out_channels=(4, 4), norm_num_groups=2)
    pipe = UnconditionalPipeline(unet, SpacedDDIMScheduler(spacing=spacing))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(measuring, "load_pipeline", tiny_pipeline)
    published = {"CIFAR-10": (10.0, 9.0, 9.5)}
    return replace(
        load_table("table5"),
        num_steps=4,
        corrections=("none", "paper", "steps=first"),
        systems=(System("float", {}), System("deepcache:2", published)),
        images=12,
        dtype="float32",
        batch_size=4,
        calibration=Calibration(4, 4),
    )


@pytest.fixture
def judged(table, tmp_path):
    measurements = table.measurements(tmp_path / "measured")
    reference = full_precision(table, measurements)
    return judge_table(measure_table(table, measurements), reference.images)


def test_every_shipped_table_is_valid():
    assert {"table1", "table2", "table3", "table5", "iterations", "relaxation", "pareto", "severity"} <= set(
        table_names()
    )
    for name in table_names():
        table = load_table(name)
        for system in table.systems:
            settings = table.settings(system)
            assert settings[0].correction is None
            assert len(set(settings)) == len(table.corrections)
            assert all(len(values) <= len(settings) for values in system.published.values())


def test_the_published_numbers_are_the_papers():
    # Spec section 7, table 5: W8A8 and DeepCache N=10 on CIFAR-10.
    published = [system.published["CIFAR-10"] for system in load_table("table5").systems]
    assert published == [(4.32, 3.76, 3.85, 3.86, 3.88, 3.97), (9.74, 7.77, 7.92, 9.31, 9.58, 9.55)]


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="There is no table 'table9': use table1"):
        load_table("table9")


def test_the_table_says_what_correction_changes_in_ours_and_in_theirs(table, judged):
    drawn = result_table(table, judged)
    assert [row.group for row in drawn.rows] == ["full precision"] * 3 + ["DeepCache N=2"] * 3
    titles = [column.title for column in drawn.columns]
    ours, theirs = titles.index("change"), titles.index("CIFAR-10") + 1
    cells = drawn.rows[4].cells
    figures = judged[1].figures
    assert cells[ours] == f"{100 * (figures[1].frechet.value / figures[0].frechet.value - 1):+.0f}"
    assert (cells[theirs - 1], cells[theirs]) == ("9", "-10")
    assert drawn.rows[0].cells[titles.index("PSNR")] == "reference"
    assert drawn.rows[3].cells[titles.index("evaluations")] == "2 + 2"
    assert drawn.rows[4].cells[titles.index("evaluations")] == "4 + 2"


def test_the_files_hold_every_row(table, judged, tmp_path):
    paths = write_table(table, judged, tmp_path)
    assert all(path.stat().st_size for path in paths)
    rows = json.loads(paths[3].read_text())["rows"]
    assert len(rows) == 6
    assert rows[4]["published"] == {"CIFAR-10": 9.0}
    assert rows[4]["correction"]["relaxation"] == 0.5


def test_rows_are_shared_between_tables(table, tmp_path):
    told = []
    measurements = table.measurements(tmp_path, on_row=lambda setting, seed, done: told.append((setting, done)))
    measure_table(table, measurements)
    other = replace(table, name="other", systems=(System("deepcache:2", {}),), corrections=("none", "paper"))
    told.clear()
    measure_table(other, other.measurements(tmp_path, on_row=lambda setting, seed, done: told.append((setting, done))))
    cache = DeepCacheConfig(2)
    assert told == [(Setting(4, cache), True), (Setting(4, cache, iec.IECConfig.paper()), True)]


def test_another_spacing_is_another_row(table, tmp_path):
    measurements = table.measurements(tmp_path)
    one = full_precision(table, measurements)
    other = full_precision(replace(table, spacing="linspace"), measurements)
    assert not torch.equal(one.images, other.images)
