import json
from dataclasses import replace

import pytest
import torch

import iec
from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.experiments import measuring
from iec.experiments.evidence import REFRESH_ONLY, EvidenceConfig, available, measure
from iec.experiments.evidence_report import claims, corrections, equal_cost, evidence_table, judge_part, write_evidence
from iec.experiments.language import parse_technique
from iec.experiments.settings import Setting
from iec.models.unconditional import UnconditionalPipeline

from .tiny import tiny_pipeline

FILE = """
dtype = "float32"
batch_size = 4
calibration = { samples = 4, batch_size = 4, seed = 0 }

[[quick]]
num_steps = 4
images = 12
seeds = [0, 1]
refresh = ["deepcache:2"]
systems = ["float", "w8a8", "deepcache:2", "cachequant:2,w8a8"]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


def loaded(folder):
    pipe = UnconditionalPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("evidence") / "evidence.toml"
    path.write_text(FILE)
    return EvidenceConfig.load("quick", path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module", autouse=True)
def pipeline(model):
    # From a folder, from which the float weights of a packed model can be read again.
    original, measuring.load_pipeline = measuring.load_pipeline, lambda **settings: loaded(model)
    yield
    measuring.load_pipeline = original


@pytest.fixture(scope="module")
def rows(config, folder):
    return measure(config, config.measurements(folder))


def test_the_rows_are_every_system_without_and_with_correction(rows):
    paper = iec.IECConfig.paper()
    expected = [Setting(4, t, c) for t in (None, QuantizationConfig()) for c in (None, paper)]
    expected += [Setting(4, DeepCacheConfig(2), c) for c in (None, paper, REFRESH_ONLY)]
    expected += [Setting(4, CacheQuantConfig(2), c) for c in (None, paper)]
    assert [row.setting for row in rows] == expected
    for row in rows:
        assert row.images.shape == (24, 3, 32, 32)
        assert (row.record["full_evaluations"], row.record["cached_evaluations"]) == row.setting.evaluations()


def test_a_row_is_what_sampling_it_by_hand_gives(rows):
    x_t = iec.initial_noise([iec.image_generator(1, i) for i in range(4)], (3, 32, 32))
    x = iec.sample(tiny_pipeline().unet, x_t, num_steps=4, config=iec.IECConfig.paper())
    expected = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(rows[1].images[12:16], expected)


def test_packed_weights_make_the_model_smaller(rows):
    sizes = {row.setting.system: row.record["model_bytes"] for row in rows}
    assert sizes["W8A8"] < 0.6 * sizes["full precision"]
    assert sizes["DeepCache N=2"] == sizes["full precision"]


def test_nothing_is_computed_twice(config, folder, rows, monkeypatch):
    monkeypatch.setattr(measuring, "sample_setting", lambda *a, **k: pytest.fail("sampled again"))
    told = []
    again = measure(config, config.measurements(folder, on_row=lambda setting, seed, done: told.append(done)))
    assert all(told)
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, rows, strict=True))


def test_another_setting_is_another_row(config, folder, rows):
    told = []
    other = replace(config, batch_size=6, parts=(replace(config.parts[0], systems=("float",)),))
    measure(other, other.measurements(folder, on_row=lambda setting, seed, done: told.append(done)))
    assert not any(told)


def test_an_interrupted_run_keeps_its_finished_rows(config, tmp_path):
    def interrupt(setting, seed, done):
        if len(told) == 3:
            raise KeyboardInterrupt
        told.append(done)

    told = []
    with pytest.raises(KeyboardInterrupt):
        measure(config, config.measurements(tmp_path, on_row=interrupt))
    resumed = []
    measure(config, config.measurements(tmp_path, on_row=lambda setting, seed, done: resumed.append(done)))
    assert resumed[:4] == [True, True, True, False]


def test_the_rows_that_are_there_make_a_page_that_names_the_others(config, folder, rows, tmp_path):
    more = replace(config, parts=(replace(config.parts[0], systems=(*config.parts[0].systems, "w4a8")),))
    found = available(more, more.measurements(folder))
    assert [row.setting for row in found] == [row.setting for row in rows]
    page = write_evidence([judge_part(found)], more, "quick", tmp_path)[0].read_text()
    assert "Not measured yet: W4A8, T=4, W4A8, T=4 + IEC all." in page
    assert available(config, config.measurements(tmp_path)) == []


def test_a_corrupt_row_is_named(config, tmp_path):
    part = replace(config.parts[0], systems=("float",), seeds=(0,))
    one = replace(config, parts=(part,))
    measure(one, one.measurements(tmp_path))
    path = next((tmp_path / "rows").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is corrupt: delete it"):
        measure(one, one.measurements(tmp_path))


def test_the_page_holds_every_row_and_the_honest_counts(rows, config, tmp_path):
    section = judge_part(rows)
    table = evidence_table(section)
    assert len(table.rows) == len(rows)
    assert table.rows[0].cells[4] == "reference"
    assert [found.ours.system for found in corrections(section)] == [
        "full precision", "W8A8", "DeepCache N=2", "DeepCache N=2", "CacheQuant N=2 W8A8",
    ]  # fmt: skip
    for found in equal_cost(section):
        rival = section.find(found.verdict.rival)
        assert rival.row.record["cost"] <= section.find(found.ours).row.record["cost"]
    assert [(f.ours.system, f.verdict.rival.system) for f in claims(section)] == [
        ("W8A8", "full precision"), ("CacheQuant N=2 W8A8", "DeepCache N=2"),
    ]  # fmt: skip
    paths = write_evidence([section], config, "quick", tmp_path)
    assert all(path.stat().st_size for path in paths)
    page = paths[0].read_text()
    wins = sum(f.verdict.outcome == "wins" for f in corrections(section) if f.ours.correction == iec.IECConfig.paper())
    assert f"IEC improves {wins} of 4 systems" in page
    figures = json.loads(paths[2].read_text())["parts"][0]["rows"]
    assert len(figures) == len(rows)
    assert len(figures[0]["kd_cifar_per_seed"]) == 2


def test_a_row_is_better_where_the_paired_difference_is_below_zero(rows):
    # Full precision against itself differs by nothing, in either direction.
    section = judge_part(rows)
    first = section.rows[0]
    assert first.per_seed[0] != first.per_seed[1]
    assert min(first.per_seed) - 0.1 < first.figures.kernel.value < max(first.per_seed) + 0.1


@pytest.mark.parametrize("size", ["quick", "full"])
def test_the_shipped_file_is_valid(size):
    found = EvidenceConfig.load(size)
    for part in found.parts:
        assert part.settings()[0] == Setting(part.num_steps)
        assert set(part.refresh) <= set(part.systems)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="Unknown size 'huge': use quick or full"):
        EvidenceConfig.load("huge")


@pytest.mark.parametrize(
    ("system", "rival"),
    [
        ("w4a8", "float"),
        ("w4a8,reconstruction=layer", "w4a8"),
        ("w8a8,bias_correction=true", "w8a8"),
        ("cachequant:5,w8a8", "deepcache:5"),
        ("cachequant:5,w8a8,bias_correction=true", "cachequant:5,w8a8"),
    ],
)
def test_a_technique_is_judged_against_the_one_it_builds_on(rows, system, rival):
    # The same images stand for both: what matters is which row is asked for.
    settings = [Setting(4, parse_technique(name)) for name in (system, rival)]
    section = judge_part([rows[0], *(replace(rows[1], setting=setting) for setting in settings)])
    assert (settings[0], settings[1]) in [(found.ours, found.verdict.rival) for found in claims(section)]
