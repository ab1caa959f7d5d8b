import json
from dataclasses import replace

import pytest
import torch
from diffusers import PNDMScheduler

import iec
from iec.efficient import DeepCacheConfig, QuantizationConfig
from iec.evaluation.bootstrap import Estimate
from iec.experiments import measuring
from iec.experiments.corrections import CALIBRATED
from iec.experiments.plans import Calibration
from iec.experiments.rows import Verdict
from iec.experiments.samplers.sampling import Sampling
from iec.experiments.settings import Setting
from iec.experiments.tables import System, full_precision, load_table, load_tables, measure_table, table_names
from iec.experiments.tables_report import JudgedTable, judge_table, lead_sentence, result_table, write_table
from iec.models.features import load_feature_network, load_reference

from .tiny import tiny_pipeline


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
        calibration=Calibration(8, 4),
    )


def judge(table, folder):
    measurements = table.measurements(folder)
    reference = full_precision(table, measurements)
    return JudgedTable(table, tuple(judge_table(measure_table(table, measurements), reference.images)))


@pytest.fixture
def judged(table, tmp_path):
    return judge(table, tmp_path / "measured")


def test_every_shipped_table_is_valid():
    assert {"table1", "table2", "table3", "table5", "iterations", "relaxation", "pareto", "severity"} <= set(
        table_names()
    )
    for name in table_names():
        for table in load_tables(name):
            for system in table.systems:
                settings = table.settings(system)
                assert settings[0].correction is None
                assert len(set(settings)) == len(table.corrections)
                assert all(len(values) <= len(settings) for values in system.published.values())


def test_the_published_numbers_are_the_papers():
    # Spec section 7, table 5: W8A8 and DeepCache N=10 on CIFAR-10.
    published = [system.published["CIFAR-10"] for system in load_table("table5").systems]
    assert published == [(4.32, 3.76, 3.85, 3.86, 3.88, 3.97), (9.74, 7.77, 7.92, 9.31, 9.58, 9.55)]


def test_table_four_is_imagenet_over_uniform_ddim_and_coco_over_stable_diffusions_plms():
    imagenet, coco = load_tables("table4")
    assert (imagenet.num_steps, imagenet.spacing, imagenet.solver) == (250, "uniform", "ddim")
    assert imagenet.setting() == Setting(250)
    assert imagenet.systems[0].published == {"ImageNet": (3.37,), "ImageNet IS": (204.56,)}
    assert coco.setting() == Setting(51, sampler=Sampling("plms-sd"))  # PLMS evaluates once more than it steps
    # Spec section 7: N=5 at W8A8, FID, IS and CLIP score, without IEC and with it at the first step.
    assert coco.systems[2].published == {
        "MS-COCO": (23.74, 22.83),
        "MS-COCO IS": (39.81, 40.91),
        "MS-COCO CLIP": (26.87, 26.94),
    }
    *corrections, calibrated = [setting.correction for setting in coco.settings(coco.systems[2])]
    assert calibrated == CALIBRATED
    assert [None if c is None else c.steps for c in corrections] == [None, "first", "all"]
    assert coco.settings(coco.systems[2])[0].technique.cache.full_steps(51) == (0, *range(6, 51, 5))
    assert (imagenet.stem, coco.stem, load_table("table5").stem) == ("table4-imagenet", "table4-ms-coco", "table5")


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="There is no table 'table9': use table1"):
        load_table("table9")


def test_the_table_says_what_correction_changes_in_ours_and_in_theirs(table, judged):
    drawn = result_table(judged)
    assert [row.group for row in drawn.rows] == ["full precision"] * 3 + ["DeepCache N=2"] * 3
    titles = [column.title for column in drawn.columns]
    ours, theirs = titles.index("change"), titles.index("CIFAR-10") + 1
    cells = drawn.rows[4].cells
    figures = judged.systems[1].figures
    assert cells[ours] == f"{100 * (figures[1].frechet.value / figures[0].frechet.value - 1):+z.0f}"
    assert (cells[theirs - 1], cells[theirs]) == ("9", "-10")
    assert drawn.rows[0].cells[titles.index("PSNR")] == "reference"
    assert drawn.rows[3].cells[titles.index("evaluations")] == "2 + 2"
    assert drawn.rows[4].cells[titles.index("evaluations")] == "4 + 2"


def test_published_figures_are_explained_where_there_are_any(judged):
    without = replace(judged, systems=judged.systems[:1])
    explained = [
        any("published figures are FIDs" in note for note in result_table(one).notes) for one in (judged, without)
    ]
    assert explained == [True, False]


def test_the_page_begins_with_how_many_rows_gained_and_lost(judged):
    better, worse, neither = (Verdict(Setting(4), Estimate(value, value - 1, value + 1)) for value in (-2.0, 2.0, 0.5))
    systems = zip(judged.systems, [(better, worse), (better, neither)], strict=True)
    lead = lead_sentence(
        replace(judged, systems=tuple(replace(one, verdicts=found, rivals=found[:1]) for one, found in systems))
    )
    assert "4 corrected rows against the same system without correction: 2 better, 1 worse, 1 that cannot" in lead
    assert "with 12 images" in lead
    # The other one's rival, full precision, is its own system.
    assert "For 1 of them another uncorrected row of this page" in lead
    assert "against it: 1 better, 0 worse, 0 that cannot be told apart." in lead
    own = tuple(replace(one, rivals=one.verdicts) for one in judged.systems)
    assert "another uncorrected row" not in lead_sentence(replace(judged, systems=own))


def test_corrected_rows_stand_beside_the_best_plain_row_on_the_same_weights_of_no_more_cost(table, tmp_path):
    systems = tuple(System(name, {}) for name in ("float", "deepcache:2", "deepcache:4"))
    judged = judge(replace(table, corrections=("none", "paper"), systems=systems), tmp_path)
    kernel = [one.figures[0].kernel.value for one in judged.systems]
    cost = [[row.record["cost"] for row in one.measured.rows] for one in judged.systems]
    for one, (_, ours) in zip(judged.systems, cost, strict=True):
        best = min((i for i in range(3) if cost[i][0] <= ours), key=kernel.__getitem__)
        assert one.rivals[0].rival == judged.systems[best].measured.settings[0]
        difference = one.figures[1].kernel.value - kernel[best]
        assert one.rivals[0].difference.value == pytest.approx(difference, abs=1e-7)
    assert any(one.rivals[0].rival != one.measured.settings[0] for one in judged.systems)

    # The last one on weights of its own: it has no rival but itself.
    last = judged.systems[-1].measured
    rounded = tuple(replace(setting, technique=QuantizationConfig()) for setting in last.settings)
    measured = [*(one.measured for one in judged.systems[:-1]), replace(last, settings=rounded)]
    alone = judge_table(measured, judged.systems[0].measured.rows[0].images)[-1]
    assert alone.rivals == alone.verdicts

    drawn = result_table(judged)
    place = [column.title for column in drawn.columns].index("against no more cost")
    cells = [row.cells[place] for row in drawn.rows]
    names = [
        "none" if one.rivals[0].rival == one.measured.settings[0] else one.rivals[0].rival.system
        for one in judged.systems
    ]
    assert [cell.split(": ")[0] for cell in cells] == ["", names[0], "", names[1], "", names[2]]
    rows = json.loads(write_table([judged], tmp_path)[1].read_text())["rows"]
    assert rows[0]["against_no_more_cost"] is None
    assert rows[1]["against_no_more_cost"]["rival"] == judged.systems[0].rivals[0].rival.label


def test_the_files_hold_every_row(table, judged, tmp_path):
    paths = write_table([judged], tmp_path)
    assert [path.name for path in paths] == ["table5.md", "table5.json", "table5.svg", "table5.png"]
    assert all(path.stat().st_size for path in paths)
    rows = json.loads(paths[1].read_text())["rows"]
    assert len(rows) == 6
    assert rows[4]["published"] == {"CIFAR-10": 9.0}
    assert rows[4]["correction"]["relaxation"] == 0.5


def part_of(table, name, **changes):
    """A part of table 4 in small, with the systems of the fixture."""
    part = {part.part: part for part in load_tables("table4")}[name]
    published = dict.fromkeys(part.systems[1].published, (40.0, 41.5))
    systems = (System("float", {}), System("deepcache:2", published))
    small = {name: getattr(table, name) for name in ("images", "dtype", "batch_size", "calibration")}
    return replace(part, num_steps=4, systems=systems, **small, **changes)


def test_table_four_is_one_page_with_both_parts_and_says_what_has_no_counterpart(table, tmp_path):
    parts = [judge(part_of(table, name), tmp_path / "measured") for name in ("ImageNet", "MS-COCO")]
    paths = write_table(parts, tmp_path)
    assert [path.name for path in paths] == [
        "table4.md", "table4.json", "table4-imagenet.svg", "table4-imagenet.png", "table4-ms-coco.svg",
        "table4-ms-coco.png",
    ]  # fmt: skip
    page = paths[0].read_text()
    assert page.startswith("# table4\n")
    assert "## ImageNet: CacheQuant over 250 uniform steps" in page
    assert "## MS-COCO: CacheQuant with Stable Diffusion's PLMS" in page
    assert page.count("paper scale only") == 2 + 8  # a note on each part, and CLIP score in each row of MS-COCO
    imagenet, coco = (result_table(part) for part in parts)
    titles = [column.title for column in coco.columns]
    assert [row.cells[titles.index("CLIP score")] for row in coco.rows] == ["paper scale only"] * 8
    assert "CLIP score" not in [column.title for column in imagenet.columns]
    first, corrected = coco.rows[4].cells, coco.rows[5].cells
    assert [corrected[titles.index(name)] for name in ("MS-COCO", "MS-COCO IS")] == ["41.5", "41.5"]
    # T=4 by PLMS are 5 evaluations, of which a cache of 2 makes 0, 2 and 4 in full; the first one is corrected.
    assert first[titles.index("evaluations")] == "3 + 2"
    assert corrected[titles.index("evaluations")] == "4 + 2"
    assert coco.rows[6].cells[titles.index("evaluations")] == "6 + 2"
    assert coco.rows[7].cells[titles.index("evaluations")] == "3 + 2"  # the calibrated correction evaluates nothing
    rows = {part["part"]: part["rows"] for part in json.loads(paths[1].read_text())["parts"]}
    assert rows["MS-COCO"][5]["published"] == dict.fromkeys(["MS-COCO", "MS-COCO IS", "MS-COCO CLIP"], 41.5)
    assert rows["ImageNet"][0]["full_evaluations"] == 4


def test_the_inception_score_is_that_of_the_embedded_classifier(table, tmp_path):
    judged = judge(part_of(table, "ImageNet"), tmp_path)
    images = judged.systems[1].measured.rows[1].images
    network = load_feature_network()
    expected, real = (
        (p * (p / p.mean(0)).log()).sum(1).mean().exp().item()
        for p in (network.logits(f).double().softmax(1) for f in (network.embed(images), load_reference().features))
    )
    assert judged.systems[1].scores[1].value == pytest.approx(expected, rel=1e-6)
    drawn = result_table(judged)
    cell = drawn.rows[4].cells[[column.title for column in drawn.columns].index("IS-cifar")]
    assert cell.startswith(f"{expected:.2f} [")
    assert any(f"CIFAR-10's test set has {real:.2f}." in note for note in drawn.notes)


@torch.no_grad()
def test_the_coco_part_samples_as_diffusers_plms_does_with_stable_diffusions_settings(table, tmp_path):
    coco = part_of(table, "MS-COCO")
    found = full_precision(coco, coco.measurements(tmp_path)).images[:2]
    pipe = tiny_pipeline()
    betas = {name: pipe.scheduler.config[name] for name in ("beta_schedule", "beta_start", "beta_end")}
    scheduler = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **betas)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 501, 251, 1]
    x = iec.initial_noise([iec.image_generator(0, i) for i in range(2)], (3, 32, 32))
    for t in scheduler.timesteps:
        x = scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    images = (255 * (x / 2 + 0.5).clamp(0, 1)).round()
    assert (images - found.float()).abs().max() <= 1  # batches of two and of four round in another way


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
