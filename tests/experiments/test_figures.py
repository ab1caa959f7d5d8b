import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import iec
from iec.efficient import DeepCacheConfig, apply
from iec.experiments import measuring
from iec.experiments.figures.config import figure_names, load_figure
from iec.experiments.figures.corrected_steps import corrected_percent
from iec.experiments.figures.drawing import write_figure
from iec.experiments.figures.errors import compare_errors, error_sentence, step_ranges
from iec.experiments.figures.reproduce import FigureSource, figure_settings
from iec.experiments.plans import Calibration
from iec.experiments.settings import Setting
from iec.experiments.tables import System, full_precision, measure_table

from .tiny import tiny_pipeline

STEPS, IMAGES, BATCH = 4, 12, 5


@pytest.fixture
def tiny(monkeypatch):
    """A figure of figures.toml, on a tiny model with few images and steps."""
    monkeypatch.setattr(measuring, "load_pipeline", tiny_pipeline)

    def make(name, systems=("deepcache:2",), corrections=("none", "paper")):
        figure = load_figure(name)
        small = {"num_steps": STEPS, "images": IMAGES, "dtype": "float32", "batch_size": BATCH}
        published = {"CIFAR-10 overhead %": (0.0, 14.0, 7.0)}
        own = tuple(System(system, published) for system in systems)
        calibration = Calibration(8, 4)
        table = replace(figure.table, **small, systems=own, corrections=corrections, calibration=calibration)
        return replace(figure, table=table)

    return make


def states_by_hand(config, cache=None):
    """The state after every step, [T, n, 3, 32, 32]: what the network is given next, and how `iec.sample` ends."""
    found = []
    for start in range(0, IMAGES, BATCH):
        pipe, given = tiny_pipeline(), {}
        if cache is not None:
            apply(pipe, cache)
        generators = [iec.image_generator(0, i) for i in range(start, min(start + BATCH, IMAGES))]

        def keep(module, arguments, given=given):
            state, timestep = arguments[:2]
            given.setdefault(int(timestep.flatten()[0]), state.clone())  # what follows is the correction's

        hook = pipe.unet.register_forward_pre_hook(keep)
        own = iec.IECConfig(num_iterations=0) if config is None else config
        noise = iec.initial_noise(generators, (3, 32, 32))
        last = iec.sample(pipe.unet, noise, num_steps=STEPS, spacing="quad", config=own)
        hook.remove()
        found.append(torch.stack([*list(given.values())[1:], last]))
    return torch.cat(found, dim=1)


def rounded(value):
    """The numbers without their last digits: a sum's order depends on where in memory its terms lie."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def test_every_shipped_figure_names_systems_of_its_table():
    assert figure_names() == [f"figure{number}" for number in range(1, 12)]
    for name in figure_names()[1:]:
        figure = load_figure(name)
        assert figure.kind in ("errors", "steps", "grid")
        settings = figure_settings(figure)
        assert len(set(settings)) == len(settings)
    assert [setting.label for setting in figure_settings(load_figure("figure7"))] == [
        "full precision, T=100",
        "DeepCache N=10, T=100",
        "DeepCache N=10, T=100 + IEC all",
    ]
    assert figure_settings(load_figure("figure10"))[0].num_steps == 250


@pytest.mark.parametrize("number", range(4, 12))
def test_a_grid_shows_rows_of_its_table(number):
    from iec.experiments.tables import load_tables

    table = {4: 1, 5: 1, 6: 2, 7: 2, 8: 3, 9: 3, 10: 4, 11: 4}[number]
    rows = [s for part in load_tables(f"table{table}") for system in part.systems for s in part.settings(system)]
    assert set(figure_settings(load_figure(f"figure{number}"))) <= set(rows)


def test_figure_one_comes_later_and_others_are_unknown():
    with pytest.raises(ValueError, match=r"figure1 .* comes with `iec analyze`, which is not there yet"):
        load_figure("figure1")
    with pytest.raises(ValueError, match="There is no figure 'figure12': use figure1"):
        load_figure("figure12")


def test_the_errors_over_the_steps_are_those_of_pipelines_run_by_hand(tiny, tmp_path):
    drawing = FigureSource(tiny("figure2"), tmp_path).draw()
    reference = states_by_hand(None)
    expected = {
        "without": states_by_hand(None, DeepCacheConfig(2)),
        "corrected": states_by_hand(iec.IECConfig(), DeepCacheConfig(2)),
    }
    errors = {name: (states - reference).double().square().mean((1, 2, 3, 4)) for name, states in expected.items()}
    [system] = drawing.numbers["systems"]
    for name, error in errors.items():
        assert [step["value"] for step in system[name]] == pytest.approx(error.tolist(), rel=1e-4, abs=1e-12)
    difference = (errors["corrected"] - errors["without"]).tolist()
    assert [step["value"] for step in system["difference"]] == pytest.approx(difference, rel=1e-3, abs=1e-9)
    control = (states_by_hand(iec.IECConfig()) - reference).double().square().mean((1, 2, 3, 4))
    found = [step["value"] for step in drawing.numbers["full_precision_with_correction"]]
    assert found == pytest.approx(control.tolist(), rel=1e-4)
    # The first step of a cache is full: without correction it makes no error there.
    assert system["without"][0]["value"] == 0


def test_errors_are_measured_once(tiny, tmp_path):
    figure, told = tiny("figure2"), []
    first = FigureSource(figure, tmp_path).draw()
    again = FigureSource(figure, tmp_path, on_row=lambda setting, seed, done: told.append((setting, done)))
    assert rounded(again.draw().numbers) == rounded(first.numbers)
    assert told == [(setting, True) for setting in figure_settings(figure)]


def test_a_figure_without_its_rows_names_them(tiny, tmp_path):
    for name in ("figure2", "figure3", "figure7"):
        source = FigureSource(tiny(name), tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} needs rows .*DeepCache N=2, T=4 \+ IEC all.*--available"):
            source.require_sampled()
        source.draw()
        source.require_sampled()


def test_a_sentence_says_where_correction_lowers_the_error_and_where_it_raises_it():
    without = torch.full((6, 20), 1.0)
    corrected = without * torch.tensor([1.0, 0.5, 0.5, 1.0, 2.0, 3.0])[:, None]
    assert error_sentence(compare_errors("W8A8", without, corrected)) == (
        "W8A8: with correction the error is lower at 2 of 6 steps (1-2) and higher at 2 of 6 steps (4-5); "
        "after the last step it is 3.00 times that without."
    )
    assert error_sentence(compare_errors("W8A8", without, without)) == (
        "W8A8: with correction the error cannot be told from that without at any of 6 steps; after the last step the "
        "two cannot be told apart."
    )
    assert step_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_the_grid_shows_the_images_of_the_rows_and_judges_all_of_them(tiny, tmp_path):
    figure = tiny("figure7")
    source = FigureSource(figure, tmp_path)
    drawing = source.draw()
    settings = [
        Setting(STEPS),
        Setting(STEPS, DeepCacheConfig(2)),
        Setting(STEPS, DeepCacheConfig(2), iec.IECConfig()),
    ]
    images = [source.measurements.row(setting, IMAGES, 0).images for setting in settings]
    errors = [(each.double() - images[0].double()).square().mean((1, 2, 3)) for each in images[1:]]
    assert drawing.numbers["mean_squared_error"] == pytest.approx([error.mean().item() for error in errors])
    [difference] = drawing.numbers["differences"]
    assert difference["value"] == pytest.approx((errors[1] - errors[0]).mean().item())
    low, high = difference["low"], difference["high"]
    word = "higher" if low > 0 else "lower" if high < 0 else "cannot be told"
    assert word in drawing.sentences[0]
    pixels = Image.open(io.BytesIO(drawing.picture)).convert("RGB").tobytes()
    first = images[2][0].permute(1, 2, 0).repeat_interleave(2, 1)  # every pixel is drawn twice as wide
    assert all(first[row].numpy().tobytes() in pixels for row in range(32))


def test_figure_three_is_table_five_over_the_fraction_of_corrected_steps(tiny, tmp_path):
    figure = tiny("figure3", ("float", "deepcache:2"), ("none", "paper", "steps=edges:1/4"))
    source = FigureSource(figure, tmp_path)
    drawing = source.draw()
    plain, cached = measure_table(figure.table, source.measurements)
    # T=4: all four steps, then the first and the last; of a cache of 2 the steps 0 and 2, then 0 alone.
    assert corrected_percent(plain) == [0, 100, 50]
    assert corrected_percent(cached) == [0, 100, 50]
    [timings] = [one for one in map(read_json, (tmp_path / "timings").iterdir()) if "DeepCache" in one["settings"][0]]
    assert len(timings["seconds"]) == 3
    by_round = np.array(timings["seconds"])
    assert cached.overheads == pytest.approx(np.median(100 * (by_round / by_round[:, :1] - 1), axis=0))
    numbers = drawing.numbers["systems"][1]
    assert numbers["overhead_percent"] == cached.overheads
    assert numbers["published_overhead_percent"] == [0, 14, 7]
    judged = full_precision(figure.table, source.measurements)
    assert len(judged.images) == IMAGES
    assert "corrected_percent" in numbers
    assert drawing.sentences[1].startswith("DeepCache N=2: correction ")


def read_json(path):
    return json.loads(path.read_text())


def test_a_figure_is_a_page_a_picture_and_numbers(tiny, tmp_path):
    for name, suffix in (("figure2", ".svg"), ("figure3", ".svg"), ("figure7", ".png")):
        figure = tiny(name)
        paths = write_figure(figure, FigureSource(figure, tmp_path / "measured").draw(), tmp_path)
        assert [path.name for path in paths] == [f"{name}.md", f"{name}{suffix}", f"{name}.json"]
        page, numbers = paths[0].read_text(), json.loads(paths[2].read_text())
        assert f"({name}{suffix})" in page
        assert all(sentence in page for sentence in numbers["sentences"])
        assert f"{IMAGES} images of seed 0" in page
        assert numbers["num_steps"] == STEPS
