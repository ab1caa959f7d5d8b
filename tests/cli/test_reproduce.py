"""`iec reproduce` of a table and of figures, on a tiny model with a few images and steps."""

import json
import sys
from dataclasses import replace

import pytest
from experiments.tiny import tiny_pipeline
from safetensors import safe_open

from iec.cli import main
from iec.experiments import measuring, tables
from iec.experiments.figures import config
from iec.experiments.plans import Calibration
from iec.experiments.tables import System, load_tables
from iec.models.loading import load_pipeline


def small(name):
    """Stands for `load_tables`."""
    own = {"num_steps": 4, "images": 10, "dtype": "float32", "batch_size": 5, "calibration": Calibration(8, 8)}
    return [replace(part, **own, systems=(System("deepcache:2", {}),)) for part in load_tables(name)]


@pytest.fixture
def reproduce(monkeypatch, capsys, tmp_path):
    """Run `iec reproduce` with these arguments: its exit code, standard output and last line of error."""
    monkeypatch.setattr(measuring, "load_pipeline", tiny_pipeline)
    monkeypatch.setattr(tables, "load_tables", small)
    figures = {name: config.load_figure(name) for name in ("figure2", "figure3", "figure7")}
    figures = {
        name: replace(figure, table=small(figure.table.name)[0].as_published()) for name, figure in figures.items()
    }
    monkeypatch.setattr(config, "load_figure", figures.__getitem__)

    def run(*arguments):
        folders = ["-o", str(tmp_path / "out"), "--results", str(tmp_path / "measured")]
        monkeypatch.setattr(sys, "argv", ["iec", "reproduce", *arguments, *folders])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err.strip().splitlines()[-1]

    return run


def test_a_table_is_a_page_a_report_and_pictures(reproduce, tmp_path):
    code, printed, _ = reproduce("table2")
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["table2.html", "table2.json", "table2.md", "table2.png", "table2.svg"]
    assert "table2.html" in printed
    # Its rows are those of the figure.
    code, _, _ = reproduce("figure7", "--available")
    assert code == 0


def test_images_and_batches_are_as_asked_and_keep_rows_of_their_own(reproduce, tmp_path):
    for arguments in ((), ("-n", "12", "--batch-size", "4", "--device", "cpu"), ("-n", "12", "--batch-size", "4")):
        code, _, _ = reproduce("table2", *arguments)
        assert code == 0
    kept = [read_row(path) for path in (tmp_path / "measured" / "rows").iterdir()]
    # Full precision, and one system without, with IEC and calibrated; naming the default device changes nothing.
    assert sorted((len(images), record["images"], record["device"]) for images, record in kept) == sorted(
        4 * [(10, 10, "cpu")] + 4 * [(12, 12, "cpu")]
    )
    assert "12 images" in (tmp_path / "out" / "table2.md").read_text()
    assert "batches of 4" in (tmp_path / "out" / "table2.html").read_text()
    code, _, _ = reproduce("figure2", "-n", "11", "--json")
    assert code == 0


def read_row(path):
    with safe_open(path, "pt") as file:
        return file.get_tensor("images"), json.loads(file.metadata()["record"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-n", "9"), "--images must be at least 10, but is 9"),
        (("--batch-size", "0"), "--batch-size must be at least 1, but is 0"),
        (("--dtype", "float8"), "Unknown dtype 'float8'"),
        (("--device", "nowhere"), "The device 'nowhere' cannot be used here"),
    ],
)
@pytest.mark.parametrize("name", ["efficient", "table2", "figure2"])
def test_bad_settings_are_one_sentence(reproduce, monkeypatch, tmp_path, name, arguments, sentence):
    monkeypatch.setattr(measuring, "load_pipeline", load_pipeline)
    code, printed, error = reproduce(name, *arguments)
    assert (code, printed) == (2, "")
    assert sentence in error
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(("name", "suffix"), [("figure2", "svg"), ("figure3", "svg"), ("figure7", "png")])
def test_a_figure_is_sampled_drawn_and_printed(reproduce, tmp_path, name, suffix):
    code, printed, error = reproduce(name, "--available")
    assert (code, printed) == (2, "")
    assert f"{name} needs rows that are not sampled yet (" in error
    assert "DeepCache N=2, T=4 + IEC all" in error
    code, printed, _ = reproduce(name)
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(f"{name}.{ending}" for ending in ("json", "md", suffix))
    code, again, _ = reproduce(name, "--available", "--json")
    numbers = json.loads(again)
    assert code == 0
    assert numbers == json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert all(sentence in printed for sentence in numbers["sentences"])
