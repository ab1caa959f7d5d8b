import json
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_unet

import iec
from iec.efficient import DeepCacheConfig, QuantizationConfig
from iec.evaluation.bootstrap import Estimate, bootstrap_kernel_difference
from iec.evaluation.cost import EvaluationCost
from iec.experiments import measuring
from iec.experiments.compare import rivals, running
from iec.experiments.compare.page import write_comparison
from iec.experiments.compare.request import DEFAULT_CORRECTIONS, Request
from iec.experiments.compare.rivals import Candidate
from iec.experiments.compare.running import best_of, judge_rows, run_comparison, workload
from iec.experiments.compare.tables import (
    contest_table,
    control_table,
    main_table,
    plot_points,
    verdict_sentence,
)
from iec.experiments.corrections import CALIBRATED, FITTED_IEC, FittedCorrection
from iec.experiments.plans import Calibration
from iec.experiments.results import StoredRow
from iec.experiments.rows import Judge, Verdict
from iec.experiments.samplers.sampling import Sampling
from iec.experiments.settings import Setting
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler

PAPER = iec.IECConfig.paper()


def tiny_pipeline(spacing="quad", **settings):
    unet = tiny_unet(sample_size=32, block_out_channels=(4, 4), norm_num_groups=2)
    pipe = UnconditionalPipeline(unet, SpacedDDIMScheduler(spacing=spacing))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def request_for(technique, **settings):
    small = {"num_steps": 4, "images": 12, "batch_size": 6, "calibration": Calibration(8, 4)}
    return Request(technique, (PAPER,), **{**small, **settings})


@pytest.fixture(scope="module")
def tiny_model():
    original, measuring.load_pipeline = measuring.load_pipeline, tiny_pipeline
    yield
    measuring.load_pipeline = original


@pytest.fixture(scope="module")
def cached(tiny_model, tmp_path_factory):
    """A comparison of a cached model, with the folder of its rows."""
    request, folder = request_for(DeepCacheConfig(2, 0)), tmp_path_factory.mktemp("cached")
    unit = request.require_valid(tiny_pipeline())
    return run_comparison(request, folder, unit, workload(request, unit)), folder, unit


def test_every_row_is_what_sampling_its_setting_gives(cached):
    comparison, _, _ = cached
    x_t = iec.initial_noise([iec.image_generator(0, i) for i in range(6)], (3, 32, 32))
    x = iec.sample(tiny_pipeline().unet, x_t, num_steps=4, config=PAPER)
    expected = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    found = comparison.row(Setting(4, None, PAPER)).stored.images
    assert torch.equal(found[:6], expected)


def test_costs_are_counted_evaluations(cached):
    comparison, _, unit = cached
    assert 0 < unit.cached_fraction < 1
    for row in comparison.rows:
        full, cached_ = row.stored.record["full_evaluations"], row.stored.record["cached_evaluations"]
        assert (full, cached_) == row.setting.evaluations()
        assert row.cost == pytest.approx(full + unit.cached_fraction * cached_)


def test_rivals_are_the_uncorrected_rows_that_cost_no_more(cached):
    comparison, _, _ = cached
    [contest] = comparison.contests
    against = {verdict.rival for verdict in contest.verdicts}
    expected = {
        row.setting for row in comparison.rows
        if row.cost <= contest.ours.cost + 1e-9 and row.role not in ("corrected",)
        and (row.role != "full precision" or row.setting.correction is None)
    }  # fmt: skip
    assert against == expected
    assert contest.ours.setting not in against
    assert any(setting.sampler.epsilon_scale != 1 for setting in against)
    assert any(setting.sampler.time_shift for setting in against)
    assert any(setting.sampler.solver == "unipc" for setting in against)
    best = min((comparison.row(setting) for setting in against), key=lambda row: row.kernel.value)
    assert contest.best.rival == best.setting


def test_a_verdict_is_the_paired_difference(cached):
    comparison, _, _ = cached
    [contest] = comparison.contests
    judge = Judge(comparison.rows[0].stored.images)
    rival = comparison.row(contest.best.rival)
    terms = [judge.judge(row.stored.images).terms for row in (contest.ours, rival)]
    assert contest.best.difference == bootstrap_kernel_difference(*terms)
    assert contest.best.difference.value == pytest.approx(contest.ours.kernel.value - rival.kernel.value)


def test_parameters_are_chosen_on_the_calibration_seed(cached):
    comparison, folder, _ = cached
    request = comparison.request
    found = []
    measurements = request.measurements(folder, on_row=lambda setting, seed, done: found.append(done))
    judge = Judge(comparison.rows[0].stored.images)
    for family in workload(request, comparison.unit).families:
        distances = {}
        for setting in family:
            row = measurements.row(setting, request.tuning_images, 0, calibration=True)
            assert row.record["seed"] == 2000
            distances[setting] = judge.kernel_distance(row.images)
        best = min(distances, key=distances.get)
        assert comparison.row(best).role == "changed network, no further cost"
    assert all(found)  # the comparison had sampled them
    assert sum(row.role == "changed network, no further cost" for row in comparison.rows) == 2


def test_an_interrupted_comparison_goes_on_where_it_was(cached, tiny_model, tmp_path, monkeypatch):
    comparison, _, unit = cached
    work = workload(comparison.request, unit)

    def interrupt(setting, seed, done):
        if len(told) == 15:
            raise KeyboardInterrupt
        told.append(done)

    told = []
    with pytest.raises(KeyboardInterrupt):
        run_comparison(comparison.request, tmp_path, unit, work, on_row=interrupt)
    resumed, images, rows = [], [], []

    def judge(request, unit, sampled, judge):
        rows.extend(sampled)
        return comparison

    monkeypatch.setattr(running, "judge_rows", judge)
    callbacks = {"on_row": lambda setting, seed, done: resumed.append(done), "on_images": images.append}
    run_comparison(comparison.request, tmp_path, unit, work, **callbacks)
    assert resumed[:16] == [True] * 15 + [False]
    assert sum(images) == work.images  # the progress reaches its total
    for candidate, stored in rows:
        assert torch.equal(stored.images, comparison.row(candidate.setting).stored.images)


def test_the_files_hold_every_row(cached, tmp_path):
    comparison, _, _ = cached
    paths = write_comparison(comparison, tmp_path)
    page, found = paths["md"].read_text(), json.loads(paths["json"].read_text())
    assert verdict_sentence(comparison) in page
    assert found["verdict"] == verdict_sentence(comparison)
    assert len(found["rows"]) == len(comparison.rows)
    assert all(row["kd_cifar"]["images"] == 12 for row in found["rows"])
    for row in comparison.rows:
        assert row.setting.label in page.replace("\\", "")
    assert [line["setting"] for line in found["error_over_steps"]] == [
        "DeepCache N=2, T=4", "DeepCache N=2, T=4 + IEC all", "full precision, T=4 + IEC all",
    ]  # fmt: skip
    assert all(len(line["mean_squared_error"]) == 4 for line in found["error_over_steps"])
    html = paths["html"].read_text()
    assert html.count('type="range"') == 8
    assert "The error over the sampling steps" in html
    assert paths["svg"].read_text().startswith("<svg")


def test_the_front_is_what_no_other_row_beats(cached):
    comparison, _, _ = cached
    table = main_table(comparison)
    front = {row.cells[0] for row in table.rows if row.cells[3] == "yes"}
    expected = {
        row.setting.label for row in comparison.rows
        if not any(
            (other.cost <= row.cost and other.kernel.value < row.kernel.value)
            or (other.cost < row.cost and other.kernel.value <= row.kernel.value)
            for other in comparison.rows
        )
    }  # fmt: skip
    assert front == expected
    assert table.rows[0].style == "reference"


def drawn(brightness):
    """Noise whose KD-cifar falls with its brightness."""
    noise = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return (255 * brightness * noise).to(torch.uint8)


def judged(technique, brightness, corrections=(PAPER,)):
    """A comparison of made-up images, of rows by (role, setting, cost)."""
    request = replace(request_for(technique), corrections=corrections)
    rows = [
        (Candidate(role, setting), StoredRow(drawn(value), {"cost": cost, "seconds": 1.0, "threads": 1,
         "full_evaluations": 4, "cached_evaluations": 0, "model_bytes": 1}))
        for role, setting, cost, value in brightness
    ]  # fmt: skip
    judge = Judge(rows[0][1].images)
    return judge_rows(request, EvaluationCost(10, 10), rows, judge)


def test_full_precision_is_no_rival_of_a_quantized_model_and_not_on_its_plot():
    w8a8 = QuantizationConfig()
    comparison = judged(
        w8a8,
        [
            ("full precision", Setting(4), 4.0, 1.0),
            ("full precision", Setting(4, None, PAPER), 8.0, 0.9),
            ("without correction", Setting(4, w8a8), 4.0, 0.8),
            ("corrected", Setting(4, w8a8, PAPER), 8.0, 0.7),
            ("another solver", Setting(9, w8a8, sampler=Sampling("heun")), 9.0, 0.6),
        ],
    )
    [contest] = comparison.contests
    assert [verdict.rival for verdict in contest.verdicts] == [Setting(4, w8a8)]
    assert [setting for setting, _ in comparison.controls] == [Setting(4, None, PAPER), Setting(4, w8a8, PAPER)]
    assert [point.label for point in plot_points(comparison)] == [
        "W8A8, T=4", "W8A8, T=4 + IEC all", "W8A8, Heun 9 evaluations",
    ]  # fmt: skip
    assert "simulated" in " ".join(main_table(comparison).notes)
    assert len(control_table(comparison).rows) == 2


ADAMS = iec.AdamsConfig()
CONTESTED = [
    ("full precision", Setting(4), 4.0, 1.0),
    ("full precision", Setting(4, None, CALIBRATED), 4.0, 0.95),
    ("without correction", Setting(4, DeepCacheConfig(2)), 3.0, 0.8),
    ("corrected", Setting(4, DeepCacheConfig(2), CALIBRATED), 3.0, 0.9),
    ("corrected", Setting(4, DeepCacheConfig(2), ADAMS), 3.0, 0.85),
    ("corrected", Setting(4, DeepCacheConfig(2), PAPER), 5.0, 0.7),
    ("corrected", Setting(4, DeepCacheConfig(2), FITTED_IEC), 5.0, 0.75),
]


def test_what_costs_no_evaluation_is_a_rival_of_what_evaluates_again():
    comparison = judged(DeepCacheConfig(2), CONTESTED, (CALIBRATED, ADAMS, PAPER, FITTED_IEC))
    against = {
        contest.ours.setting.correction: {verdict.rival for verdict in contest.verdicts}
        for contest in comparison.contests
    }
    cached = DeepCacheConfig(2)
    plain, free = {Setting(4, cached)}, {Setting(4, cached, CALIBRATED), Setting(4, cached, ADAMS)}
    assert against[CALIBRATED] == against[ADAMS] == plain
    assert against[PAPER] == against[FITTED_IEC] == plain | free | {Setting(4), Setting(4, None, CALIBRATED)}


def test_the_sentence_says_which_row_is_best_of_all():
    comparison = judged(DeepCacheConfig(2), CONTESTED, (CALIBRATED, ADAMS, PAPER, FITTED_IEC))
    best = max(CONTESTED, key=lambda row: row[3])[1]  # the brighter, the lower
    assert f"{best.label} (cost 4.0) has the lowest KD-cifar." in verdict_sentence(comparison)
    assert "calibrated and IEC fitted" in " ".join(main_table(comparison).notes)


def test_the_default_correctors_are_compared_and_their_plans_made_once(tiny_model, tmp_path, monkeypatch):
    for name in ("_SCALES", "_WINDOWS", "_SOLVERS"):
        monkeypatch.setattr(rivals, name, getattr(rivals, name)[-1:])
    request = replace(
        request_for(DeepCacheConfig(2, 0), calibration=Calibration(8, 8)), corrections=DEFAULT_CORRECTIONS
    )
    unit = request.require_valid(tiny_pipeline())
    work, images = workload(request, unit), []
    comparison = run_comparison(request, tmp_path / "kept", unit, work, on_images=images.append)
    assert sum(images) == work.images
    assert work.plans == len(list((tmp_path / "kept" / "plans").iterdir())) == 5
    labels = [contest.ours.setting.label.partition(" + ")[2] for contest in comparison.contests]
    assert labels == ["calibrated", "Adams", "IEC all", "IEC fitted"]
    costs = {contest.ours.setting.correction: contest.ours.cost for contest in comparison.contests}
    assert costs[CALIBRATED] == costs[ADAMS] == comparison.row(request.plain).cost < costs[PAPER]
    paths = write_comparison(comparison, tmp_path / "page")
    found = json.loads(paths["json"].read_text())
    assert [correction.get("kind") for correction in found["settings"]["corrections"]] == [
        "fitted", "adams", None, "fitted",
    ]  # fmt: skip
    assert len(found["error_over_steps"]) == 1 + 2 * 4
    again = []
    run_comparison(request, tmp_path / "kept", unit, work, on_row=lambda setting, seed, done: again.append(done))
    assert all(again)


def with_outcomes(comparison, *differences):
    contests = []
    for value in differences:
        verdict = Verdict(comparison.contests[0].best.rival, Estimate(value, value - 1, value + 1))
        contests.append(replace(comparison.contests[0], best=verdict, verdicts=(verdict,)))
    return replace(comparison, contests=tuple(contests))


@pytest.mark.parametrize(
    ("differences", "head", "words"),
    [
        ((-5.0,), "Correction pays here, by IEC all: on", ["wins over"]),
        ((5.0,), "Correction does not pay here: on", ["loses to"]),
        ((0.5,), "Correction is not shown to pay here with 12 images: on", ["cannot be told from"]),
        ((5.0, -5.0), "Correction pays here, by IEC all: on", ["loses to", "wins over"]),
        ((5.0, 0.5), "Correction is not shown to pay here with 12 images: on", ["loses to", "cannot be told from"]),
    ],
)
def test_the_sentence_says_what_the_intervals_say(cached, differences, head, words):
    comparison = with_outcomes(cached[0], *differences)
    sentence = verdict_sentence(comparison)
    assert sentence.startswith(head)
    assert sentence.count(".") - sentence.count(".5") >= 1
    assert all(word in sentence for word in words)
    outcomes = [row.cells[3] for row in contest_table(comparison).rows]
    assert outcomes == [{"wins over": "wins", "loses to": "loses"}.get(word, "not separable") for word in words]


def test_the_best_of_a_family_has_the_smallest_distance():
    family = tuple(Setting(4, sampler=Sampling(epsilon_scale=scale)) for scale in (0.9, 1.1, 1.2))
    assert best_of(family, lambda setting: abs(setting.sampler.epsilon_scale - 1.12)) == family[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"images": 9}, "at least 10 images"),
        ({"corrections": ()}, "no corrector"),
        ({"corrections": (CALIBRATED,), "calibration": Calibration(4, 4)}, "samples must be at least 8, but is 4"),
        ({"corrections": (FittedCorrection(bands=2),), "calibration": Calibration(8, 8)}, "bands must be 1, 3 or None"),
        ({"corrections": (iec.IECConfig(relaxation=0),)}, "corrects nothing"),
        ({"corrections": (iec.IECConfig(num_iterations=0),)}, "corrects nothing"),
        ({"corrections": (iec.IECConfig(steps="none"),)}, "corrects nothing"),
        ({"corrections": (iec.IECConfig(steps=[1, 3]),)}, "corrects nothing"),
        ({"corrections": (iec.IECConfig(steps=[9]),)}, "Step 9 was selected"),
        ({"technique": DeepCacheConfig(5)}, "longer than the run of 4 steps"),
        ({"technique": DeepCacheConfig(2, 99)}, "Branch 99 does not exist"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_steps": 7, "spacing": "uniform"}, "uniform spacing needs"),
        ({"seed": 2000}, "seed must lie in 0..1999"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sampled(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(request_for(DeepCacheConfig(2)), **settings).require_valid(tiny_pipeline())
