"""The study of the calibrated correction: what it compares, and that it keeps what it sampled."""

import json
from dataclasses import replace

import pytest

from iec.efficient import CacheQuantConfig, DeepCacheConfig
from iec.experiments import measuring
from iec.experiments.correction_page import study_tables, write_study
from iec.experiments.correction_study import CorrectionStudy, Group, measure_study
from iec.experiments.corrections import CALIBRATED
from iec.experiments.plans import Calibration
from iec.experiments.samplers.sampling import Sampling
from iec.experiments.settings import Setting
from iec.method.adams import AdamsConfig

from .tiny import tiny_pipeline


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(measuring, "load_pipeline", tiny_pipeline)
    base = Setting(3)
    corrected = (replace(base, correction=CALIBRATED), replace(base, correction=AdamsConfig()))
    group = Group(base, corrected, (replace(base, sampler=Sampling("ipndm")),), (), tuned=False)
    return CorrectionStudy("float32", 5, 10, (0, 1), Calibration(8, 8), 4, 10, (group,))


def test_the_shipped_study_has_every_group_of_the_bar():
    found = {(group.base.system, group.base.num_steps): group for group in CorrectionStudy.load().groups}
    assert {("W8A8", 10), ("W8A8", 20), ("full precision", 5), ("W4A8 reconstructed", 20), ("W4A8", 5)} <= set(found)
    assert {("DeepCache N=10", 10), ("DeepCache N=2", 100), ("CacheQuant N=5 W8A8", 10)} <= set(found)
    assert ("CacheQuant N=10 W8A8", 10) not in found  # its search needs two steps in each interval
    solvers = {setting.sampler.solver for setting in found["W8A8", 10].rivals}
    assert solvers == {"dpm++2m", "unipc", "plms", "deis", "ipndm"}
    assert found["W8A8", 10].tuned
    for group in found.values():
        cache = group.base.technique
        assert group.corrected[0] == replace(group.base, correction=CALIBRATED)
        assert isinstance(cache, (DeepCacheConfig, CacheQuantConfig)) or len(group.rivals) >= 4


def test_it_samples_every_row_once_and_the_figures_are_those_of_all_seeds(study, tmp_path):
    sampled = []
    measurements = study.measurements(tmp_path / "kept", on_row=lambda setting, seed, done: sampled.append(done))
    assert measure_study(study, measurements, available=True) == []
    assert sampled == []
    [rows] = measure_study(study, measurements)
    assert sampled == [False] * 2 * 5  # two seeds of four rows and of the reference
    assert [row.images for row in rows] == [20] * 4
    assert [len(row.per_seed) for row in rows] == [2] * 4
    base, calibrated, *_ = rows
    assert calibrated.setting.correction == CALIBRATED
    assert calibrated.against is None
    assert base.against.difference.value == pytest.approx(calibrated.kernel.value - base.kernel.value)
    assert {row.cost for row in rows} == {3.0}
    assert measure_study(study, measurements, available=True) == [rows]


def test_the_page_holds_every_row_and_says_how_many_seeds(study, tmp_path):
    groups = measure_study(study, study.measurements(tmp_path / "kept"))
    [table] = study_tables(groups, study)
    assert "20 images, 2 of 2 seeds" in table.title
    path = write_study(groups, study, tmp_path / "page")
    text = path.read_text()
    for row in groups[0]:
        assert row.setting.label in text
    found = json.loads((tmp_path / "page" / "correction.json").read_text())
    assert [row["setting"] for row in found["groups"][0]] == [row.setting.label for row in groups[0]]
