import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

import iec
from iec.efficient import DeepCacheConfig, applied
from iec.evaluation.bootstrap import Estimate
from iec.experiments import demo
from iec.experiments.corrections import FittedCorrection
from iec.experiments.demo import run_demo
from iec.experiments.demo_report import demo_sentences, demo_table, verdict_table, write_demo
from iec.experiments.plans import Plans
from iec.experiments.rows import Verdict, sample_setting
from iec.experiments.settings import Setting

from .tiny import tiny_pipeline


@pytest.fixture(scope="module")
def result():
    original, demo.load_pipeline = demo.load_pipeline, tiny_pipeline
    try:
        yield run_demo(num_images=12)
    finally:
        demo.load_pipeline = original


def test_the_rows_are_what_their_settings_say(result):
    for row in result.rows:
        setting = row.sampled.setting
        assert (row.sampled.full, row.sampled.cached) == setting.evaluations()
        if not isinstance(setting.correction, iec.IECConfig):  # it evaluates exactly what the plain run does
            assert (row.sampled.full, row.sampled.cached) == replace(setting, correction=None).evaluations()
        assert row.sampled.cost == pytest.approx(setting.cost(result.plan.unit))
        assert row.sampled.images.shape == (12, 3, 32, 32)


def test_a_row_is_the_same_as_sampling_it_alone(result):
    setting = result.plan.reference
    pipe = tiny_pipeline()
    x_t = iec.initial_noise([iec.image_generator(0, i) for i in range(32)], (3, 32, 32))
    x = iec.sample(pipe.unet, x_t, num_steps=20, correction=iec.AdamsConfig())
    expected = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[:12]
    assert torch.equal(result.row(setting).sampled.images, expected)


def test_the_number_of_workers_does_not_change_a_byte():
    setting = Setting(4, DeepCacheConfig(2, branch=0), iec.IECConfig())
    pipe, threads = tiny_pipeline(), torch.get_num_threads()
    images = []
    try:
        for workers in (1, 3):
            torch.set_num_threads(workers)
            images.append(sample_setting(pipe, setting, 10, 0, 2, Plans()).images)
            assert torch.get_num_threads() == workers
    finally:
        torch.set_num_threads(threads)
    assert images[0].shape == (10, 3, 32, 32)
    assert torch.equal(*images)


def test_a_failing_worker_is_heard_and_the_cache_is_gone(monkeypatch):
    pipe = tiny_pipeline()

    def fail(images):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        sample_setting(pipe, Setting(4, DeepCacheConfig(2)), 10, 0, 2, Plans(), fail)
    assert applied(pipe) is None


def test_the_first_row_is_the_reference_of_fidelity(result):
    first, *rest = result.rows
    assert first.sampled.setting == result.plan.reference
    assert first.figures.psnr is None
    assert all(row.figures.psnr is not None for row in rest)


def test_every_correction_stands_against_all_that_costs_no_more(result):
    for system in result.plan.systems:
        assert [type(setting.correction) for setting in system.corrected] == [
            iec.IECConfig,
            iec.AdamsConfig,
            FittedCorrection,
        ]
        for setting in system.corrected:
            cost = result.row(setting).sampled.cost
            rivals = {verdict.rival for verdict in result.verdicts[setting]}
            others = set(system.settings) - {setting}
            assert rivals == {other for other in others if result.row(other).sampled.cost <= cost + 1e-9}
            assert system.base in rivals


def test_the_rivals_of_a_cache_are_full_precision_and_its_own_calibrated_plan(result):
    (cached,) = [system for system in result.plan.systems if isinstance(system.base.technique, DeepCacheConfig)]
    assert {setting.sampler.solver for setting in cached.rivals} == {"ddim", "dpm++2m"}
    assert any(isinstance(setting.correction, FittedCorrection) for setting in cached.rivals)
    assert all(setting.technique is None for setting in cached.rivals)


def test_a_win_needs_an_interval_below_zero():
    rival = Setting(20, DeepCacheConfig(4))
    assert Verdict(rival, Estimate(-1.0, -2.0, -0.1)).outcome == "wins"
    assert Verdict(rival, Estimate(1.0, 0.1, 2.0)).outcome == "loses"
    assert Verdict(rival, Estimate(-1.0, -2.0, 0.1)).outcome == "not separable"


def test_every_row_is_in_the_table_and_every_verdict_in_a_row_and_a_sentence(result):
    table, verdicts, sentences = demo_table(result), verdict_table(result), demo_sentences(result)
    assert len(table.rows) == len(result.rows)
    assert len(sentences) == sum(1 + len(system.corrected) for system in result.plan.systems) == 8
    assert len(verdicts.rows) == sum(len(group) for group in result.verdicts.values())
    for row in verdicts.rows:
        assert {"wins": "win", "loses": "lose", "not separable": ""}[row.cells[-1]] == row.style
    for sentence in sentences:
        assert "KD-cifar" in sentence
    for sentence in [sentence for sentence in sentences if sentence.startswith("  ")]:
        assert re.search("wins over|loses to|is not separable with 12 images from", sentence)


def test_the_output_is_a_picture_a_page_and_numbers(result, tmp_path):
    paths = write_demo(result, tmp_path)
    with Image.open(paths["grid"]) as grid:
        assert grid.width > 12 * 64
        assert grid.height < 9 * 80  # eight rows at most
    page = paths["report"].read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "FID " not in page.replace("no FID", "")
    rows = json.loads(paths["json"].read_text())["rows"]
    assert len(rows) == len(result.rows)
    assert {"full_evaluations", "cached_evaluations", "cost", "seconds", "kd_cifar", "fd_cifar"} <= set(rows[0])
