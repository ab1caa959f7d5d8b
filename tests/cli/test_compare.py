import json
import sys

import numpy as np
import pytest
import torch
from models.paper_folders import save_paper_model, small_paper_model
from safetensors import safe_open
from tiny_models import ddim_pipe, tiny_unet

from iec.cli.app import main
from iec.evaluation.generate import generate
from iec.experiments.compare import rivals
from iec.models.loading import load_pipeline


@pytest.fixture
def model(tmp_path):
    ddim_pipe(tiny_unet(sample_size=32, block_out_channels=(4, 4), norm_num_groups=2)).save_pretrained(
        tmp_path / "model"
    )
    return str(tmp_path / "model")


@pytest.fixture
def compare(monkeypatch, capsys):
    """Run `iec compare` with these arguments: its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iec", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return run


def test_a_users_model_is_compared_and_then_found_again(compare, model, tmp_path, monkeypatch):
    for name in ("_SCALES", "_WINDOWS", "_SOLVERS"):
        monkeypatch.setattr(rivals, name, getattr(rivals, name)[-1:])
    arguments = (model, "--steps", 4, "--cache", "deepcache:2", "-n", 10, "--batch-size", 10, "--correct", "paper")
    arguments += ("--samples", 8)
    code, printed, told = compare(*arguments, "-o", tmp_path / "out", "--json")
    assert code == 0
    result = json.loads(printed)
    assert result["settings"]["model"] == model
    assert result["settings"]["spacing"] == "linspace"
    assert [contest["setting"] for contest in result["contests"]] == ["DeepCache N=2, T=4 + IEC all"]
    assert "full evaluations" in told
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"compare.md", "compare.json", "compare.svg", "compare.html", "measured"}
    kept = {path.name for path in (tmp_path / "out" / "measured" / "rows").iterdir()}
    code, printed, _ = compare(*arguments, "-o", tmp_path / "again", "--results", tmp_path / "out" / "measured")
    assert code == 0
    assert "DeepCache N=2" in printed
    assert result["verdict"] in printed.replace("\n", " ")
    assert {path.name for path in (tmp_path / "out" / "measured" / "rows").iterdir()} == kept


@pytest.mark.parametrize(
    ("name", "options", "inputs"),
    [
        ("coco", ["--prompts", "captions"], {"prompt": ["a", "b a", "b"]}),
        ("imagenet", ["--classes", "all"], {"class_labels": list(range(4))}),
        ("churches", [], {}),
    ],
)
def test_latent_models_with_prompts_and_classes_are_compared_as_they_sample(
    compare, tmp_path, monkeypatch, name, options, inputs
):
    save_paper_model(small_paper_model(name), tmp_path / "model")
    (tmp_path / "captions").write_text("a\nb a\nb\n")
    np.savez(tmp_path / "real.npz", arr_0=np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8))
    options = [tmp_path / option if option == "captions" else option for option in options]
    code, printed, _ = compare(
        tmp_path / "model", *options, "--steps", 6, "--cache", "deepcache:2", "-n", 10, "--batch-size", 4,
        "--correct", "paper", "--samples", 8, "--reference", tmp_path / "real.npz", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0
    result = json.loads(printed)
    solvers = {row["sampler"]["solver"] for row in result["rows"]}
    assert solvers == {"ddim", "heun", "dpm++2m", "unipc", "deis", "ipndm", "plms"}
    # Every row has its images; those of full precision are what the pipeline makes itself.
    rows = {}
    for path in (tmp_path / "out" / "measured" / "rows").iterdir():
        with safe_open(path, "pt") as file:
            rows.setdefault(json.loads(file.metadata()["record"])["setting"], file.get_tensor("images"))
    pipe = load_pipeline(tmp_path / "model", spacing="linspace")
    pipe.safety_checker = None
    expected = torch.cat([batch.images for batch in generate(pipe, 10, 6, batch_size=4, inputs=inputs)])
    assert torch.equal(rows["full precision, T=6"], expected)
    assert all(images.float().std() > 1 for images in rows.values())
    assert not torch.equal(rows["DeepCache N=2, T=6"], expected)
    # And the errors over the steps, of the same seeds, begin at the first step without one.
    plain, _, control = result["error_over_steps"]
    assert plain["mean_squared_error"][0]["value"] == 0
    assert plain["mean_squared_error"][1]["value"] > 0
    assert control["setting"] == "full precision, T=6 + IEC all"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-n", 9], "at least 10 images"),
        (["--samples", 0], "at least 1 trajectory"),
        (["--samples", 7], "samples must be at least 8, but is 7"),
        (["--correct", "calibrated,history=-1"], "history must be at least 0"),
        (["--device", "nowhere"], "The device 'nowhere' cannot be used here"),
        (["--spacing", "scheduler"], "one time grid: use the spacing quad"),
        (["--cache", "deepcache:5"], "longer than the run of 4 steps"),
        (["--cache", "deepcache:2", "--quantize", "w8a8"], "--cachequant 2,w8a8"),
        (["--quantize", "w1a8"], "weights must lie in 2..8"),
        (["--correct", "none"], "no corrector"),
        (["--correct", "steps=7"], "Step 7 was selected"),
        (["--correct", "relaxation=0"], "corrects nothing here"),
        (["--dtype", "int8"], "Unknown dtype"),
        (["--seed", 2000], "seed must lie in 0..1999"),
    ],
)
def test_bad_settings_are_one_sentence_and_exit_code_2(compare, model, tmp_path, arguments, sentence):
    steps = [] if "--steps" in arguments else ["--steps", 4]
    code, printed, error = compare(model, *steps, "-o", tmp_path / "out", *arguments)
    assert (code, printed) == (2, "")
    assert sentence in error.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_bad_models_and_folders_are_one_sentence_and_exit_code_2(compare, model, tmp_path):
    ddim_pipe(tiny_unet()).save_pretrained(tmp_path / "small")
    (tmp_path / "file").write_text("")
    np.savez(tmp_path / "real.npz", mu=np.zeros(128), sigma=np.eye(128))
    np.savez(tmp_path / "tiny.npz", arr_0=np.zeros((12, 8, 8, 3), np.uint8))
    for arguments, sentence in [
        ([tmp_path / "nowhere"], "There is no model folder"),
        ([tmp_path / "small"], "sees 32x32 images of 3 channels, but these are 8x8 of 3: use --features inception"),
        ([model, "--features", "eyes"], "Unknown features 'eyes': use cifar or inception"),
        ([model, "--features", "inception"], "pip install 'iec-diffusion[fid]'"),
        ([model, "--reference", tmp_path / "real.npz"], "holds statistics alone"),
        ([model, "--reference", tmp_path / "tiny.npz"], "both must have the same resolution and channels"),
        ([model, "--prompt", "a"], "takes no 'prompt'"),
        ([model, "--classes", "all"], "has no classes: leave out --classes"),
        ([model, "--steps", 4, "-o", tmp_path / "file" / "out"], "cannot be written"),
    ]:
        code, printed, error = compare(*arguments)
        assert (code, printed) == (2, "")
        assert sentence in error.strip().splitlines()[-1]
