"""`iec reproduce --scale paper` on tiny random-weight models of the paper's classes, saved as diffusers folders."""

import hashlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from models.paper_folders import save_paper_model, small_paper_model
from PIL import Image

import iec
from iec.cli.app import main
from iec.evaluation.frechet import frechet_distance
from iec.evaluation.image_folder import ImageFolder
from iec.experiments.paper import judging, tables
from iec.experiments.tables import System, load_tables
from iec.models.features import Reference, load_feature_network, load_reference, save_reference
from iec.models.paper import load_paper_model, paper_models

IMAGES = 10
#: A table for every data set, and the systems that stand for its own at four steps.
CASES = {
    "cifar10": ("table1", "w8a8"),
    "churches": ("table2", "deepcache:2"),
    "bedrooms": ("table3", "cachequant:2,float"),
    "imagenet": ("table4", "cachequant:2,float"),
    "coco": ("table4", "cachequant:2,float,schedule=plms"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The paper's models and tables in small; the published figures of the systems are made up."""
    models = {name: small_paper_model(name) for name in paper_models()}
    monkeypatch.setattr(tables, "paper_models", lambda: models)
    monkeypatch.setattr(tables, "paper_model", models.__getitem__)
    systems = {table: {} for table, _ in CASES.values()}
    for name, (table, system) in CASES.items():
        data = models[name].dataset
        figures = {data: (5.0, 4.0), f"{data} IS": (2.0, 3.0), f"{data} CLIP": (20.0, 21.0)}
        systems[table][data] = (System("float", {data: (3.0,)}), System(system, figures))

    def load(name):
        chosen = systems.get(name, {}).items()
        return [
            replace(part, systems=tuple(s for data, found in chosen if _has(part, data) for s in found) or part.systems)
            for part in load_tables(name)
        ]

    monkeypatch.setattr(tables, "load_tables", load)
    return models


def _has(part, data):
    return any(data in system.published for system in part.systems)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A hundred of the embedded reference's images: the kernel distance within all of them takes seconds."""
    path = tmp_path_factory.mktemp("reference") / "reference.safetensors"
    save_reference(Reference.of(load_reference().features[:100]), path)
    return path


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, reference):
    """Run a data set's table: the exit code, what was printed, and the last line of standard error."""

    def command(name, *options, images=IMAGES, table=None):
        arguments = [
            table or CASES[name][0], "--scale", "paper", "--data", name, "-n", images, "--features", "cifar",
            "--reference", reference, "-o", tmp_path / "pages", "--results", tmp_path / "results", *options,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["iec", "reproduce", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, (output.err.strip().splitlines() or [""])[-1]

    return command


@pytest.fixture
def folder(small, tmp_path):
    """Save a data set's model and give the options that name it."""

    def save(name):
        save_paper_model(small[name], tmp_path / name)
        options = ["--model", tmp_path / name]
        if name == "coco":
            (tmp_path / "captions.txt").write_text("a\nb a\nb\n")
            options += ["--captions", tmp_path / "captions.txt"]
        return options

    return save


@pytest.fixture
def clip(monkeypatch):
    """A CLIP score that counts the words of the prompts."""
    from iec.evaluation.metrics.clip import ClipScore

    class Words:
        def __call__(self, images, prompts):
            return torch.tensor([float(len(prompt.split())) for prompt in prompts], dtype=torch.float64)

    monkeypatch.setattr(ClipScore, "load", classmethod(lambda cls, name, device: Words()))


def pixels(path):
    return torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in sorted(path.glob("*.png"))]))


def digests(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.glob("**/*.png"))}


def unwrapped(model, folder, count):
    """The images of full precision without correction, one call of the bare pipeline each."""
    pipe = load_paper_model(model, folder)
    found = []
    for i in range(count):
        inputs = dict(model.inputs)
        if model.class_embedder is not None:
            inputs["class_labels"] = i % (model.class_embedder.settings["num_classes"] - 1)
        if model.takes_prompts:
            inputs["prompt"] = ["a", "b a", "b"][i % 3]
        with torch.no_grad():
            image = pipe(generator=[iec.image_generator(0, i)], output_type="np", **inputs).images[0]
        found.append(torch.from_numpy((255 * image).round()))
    return torch.stack(found)


@pytest.mark.parametrize("name", CASES)
def test_every_data_set_is_sampled_as_its_own_pipeline_does_and_stands_beside_the_published_figures(
    name, run, folder, small, tmp_path, clip, reference
):
    code, printed, error = run(name, *folder(name), "--json")
    assert code == 0, error
    report = json.loads(printed)
    corrections = 4 if name == "coco" else 3
    assert len(report["rows"]) == 2 * corrections
    images = tmp_path / "results" / name / "images"
    plain = pixels(images / "full-precision-t-4")
    assert (plain - unwrapped(small[name], tmp_path / name, IMAGES)).abs().max() <= 1  # rounding between batch sizes

    records = [json.loads(file.read_text()) for file in images.glob("*/sampling.json")]
    assert len(records) == 2 * corrections
    assert len({record["settings"]["weights"] for record in records}) == 1  # nothing of a row stays on the network

    calls = 5 if name == "coco" else 4  # PLMS evaluates once more than it steps
    row, corrected = report["rows"][corrections], report["rows"][corrections + 1]
    full, cached = (calls, 0) if name == "cifar10" else ({4: 2, 5: 2}[calls], {4: 2, 5: 3}[calls])
    assert (row["cost"]["full_evaluations"], row["cost"]["cached_evaluations"]) == (full, cached)
    more = 1 if name == "coco" else full  # Stable Diffusion's first step alone
    assert corrected["cost"]["full_evaluations"] == full + more

    ours = row["figures"]["FID"]["value"]
    features = load_feature_network().embed(pixels(images / _label(row)).permute(0, 3, 1, 2))
    real = load_reference(reference)
    exact = frechet_distance(features.double().mean(0), torch.cov(features.double().T), real.mean, real.covariance)
    assert ours == pytest.approx(float(exact), rel=1e-6)
    assert row["difference"]["FID"] == pytest.approx(ours - 5)
    assert corrected["published"]["IS"] == 3
    if name == "coco":
        assert row["figures"]["CLIP score"]["value"] == pytest.approx((1 + 2 + 1) * 3 / 10 + 1 / 10)
        assert row["difference"]["CLIP score"] == pytest.approx(1.3 - 20)
    assert "10 images per row; the paper has" in report["differences"][0]
    page = (tmp_path / "pages" / f"{CASES[name][0]}-{name}.md").read_text()
    assert small[name].dataset in page
    assert "cannot be compared with the published ones in value" in page


def _label(row):
    """The folder of a row."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in row["setting"].lower()).split())


def test_an_interrupted_row_goes_on_to_the_same_bytes_and_nothing_is_measured_twice(run, folder, tmp_path, monkeypatch):
    options = folder("cifar10")
    assert run("cifar10", *options, "--results", tmp_path / "whole")[0] == 0
    add, added = ImageFolder.add, []

    def stop_at_fourth(self, batch):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(batch.start)
        add(self, batch)

    monkeypatch.setattr(ImageFolder, "add", stop_at_fourth)
    assert run("cifar10", *options)[0] == 130
    assert added == [0, 5, 0]  # the first row, and half of the second

    monkeypatch.setattr(ImageFolder, "add", lambda self, batch: (added.append(batch.start), add(self, batch))[1])
    assert run("cifar10", *options)[0] == 0
    assert added == 6 * [0, 5]
    assert digests(tmp_path / "results") == digests(tmp_path / "whole")

    def refuse(*arguments, **settings):
        raise AssertionError("measured again")

    monkeypatch.setattr(judging, "evaluate", refuse)
    pages = (tmp_path / "pages" / "table1-cifar10.json").read_text()
    assert run("cifar10", *options)[0] == 0
    assert len(added) == 12
    assert (tmp_path / "pages" / "table1-cifar10.json").read_text() == pages


def test_other_metrics_are_measured_again(run, folder, tmp_path):
    options = folder("cifar10")
    assert run("cifar10", *options)[0] == 0
    before = json.loads((tmp_path / "pages" / "table1-cifar10.json").read_text())["rows"][0]["figures"]
    plain = tmp_path / "results" / "cifar10" / "images" / "full-precision-t-4"
    assert run("cifar10", *options, "--reference", plain)[0] == 0
    after = json.loads((tmp_path / "pages" / "table1-cifar10.json").read_text())["rows"][0]["figures"]
    assert before["FID"]["value"] > 1
    assert after["FID"]["value"] == pytest.approx(0, abs=1e-6)
    assert set(after) == {"FID", "IS", "KD-cifar", "sFD-cifar"}  # a reference of images has spatial features


def test_what_is_missing_is_one_sentence_before_any_work(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    coco = folder("coco")
    cases = [
        (("cifar10", "--model", tmp_path / "nowhere"), {}, "There is no model folder"),
        (("cifar10",), {}, "'google/ddpm-cifar10-32' is no folder here and could not be loaded from the hub"),
        (("bedrooms",), {}, "exist only as a CompVis checkpoint: rewrite it with iec convert --model bedrooms"),
        (("coco", *coco[:2]), {}, "needs captions: give a file of them, one a line, with --captions"),
        (("coco", *coco[:2], "--captions", tmp_path / "no.txt"), {}, "cannot be read"),
        (("cifar10", *coco[2:]), {}, "takes no captions: leave out --captions"),
        (("coco", *coco, "--clip-model", tmp_path / "nowhere"), {}, "could not be loaded"),
        (("cifar10", *coco[:2]), {}, "This UNet is not the one of 'cifar10'"),
        (("cifar10", "--features", "inception", "--reference", tmp_path), {}, "pip install 'iec-diffusion[fid]'"),
        (("cifar10",), {"images": 9}, "at least 10 images"),
        (("imagenet",), {"table": "table1"}, "table1 has no data set 'imagenet': use --data cifar10"),
        (("cifar10",), {"table": "severity"}, "The paper scale has table1, table2"),
    ]
    for arguments, settings, sentence in cases:
        code, printed, error = run(*arguments, **settings)
        assert (code, printed) == (2, ""), error
        assert sentence in error
        assert error.startswith("iec: ")
    assert not (tmp_path / "pages").exists()
    assert not (tmp_path / "results").exists()


def pictures(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def test_of_several_processes_each_samples_its_part_and_the_last_measures(run, folder, tmp_path, monkeypatch):
    options = [*folder("cifar10"), "--batch-size", 4]
    assert run("cifar10", *options)[0] == 0
    alone = pictures(tmp_path / "results")
    page = (tmp_path / "pages" / "table1-cifar10.json").read_text()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        shared = ["-o", tmp_path / "shared", "--results", tmp_path / "both"]
        code, printed, error = run("cifar10", *options, *shared)
        assert code == 0, error
        assert ("Process 1 of 2 has sampled its part of every row" in printed) == (rank == "1")
        assert [path.name for path in (tmp_path / "shared").glob("*.json")] == ["table1-cifar10.json"] * (rank == "0")
    assert pictures(tmp_path / "both") == alone
    figures = [row["figures"] for row in json.loads(page)["rows"]]
    found = json.loads((tmp_path / "shared" / "table1-cifar10.json").read_text())
    assert [row["figures"] for row in found["rows"]] == figures


def test_a_table_of_several_data_sets_needs_one():
    with pytest.raises(ValueError, match="table4 has several data sets: choose one with --data imagenet or coco"):
        tables.load_paper_table("table4")


def test_a_reference_of_another_size_is_refused_before_sampling(run, folder, tmp_path):
    (tmp_path / "real").mkdir()
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / "real" / f"{i}.png")
    code, _, error = run("cifar10", *folder("cifar10"), "--reference", tmp_path / "real")
    assert code == 2
    assert "but" in error
    assert "16x16" in error
    assert not (tmp_path / "results").exists()


def test_options_that_lack_or_belong_to_the_other_scale_are_refused(monkeypatch, capsys):
    for arguments, sentence in (
        (["table5", "--scale", "paper"], "or an npz of their statistics, with --reference"),
        (["table1", "--captions", "x"], "--captions belongs to --scale paper"),
        (["table1", "--scale", "huge"], "Unknown scale 'huge'"),
    ):
        monkeypatch.setattr(sys, "argv", ["iec", "reproduce", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err
