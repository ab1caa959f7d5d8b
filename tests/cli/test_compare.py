import json
import sys

import pytest
from tiny_models import ddim_pipe, tiny_unet

from iec.cli.app import main
from iec.experiments.compare import rivals


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
    ("arguments", "sentence"),
    [
        (["-n", 9], "at least 10 images"),
        (["--samples", 0], "at least 1 trajectory"),
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
    for arguments, sentence in [
        ([tmp_path / "nowhere"], "There is no model folder"),
        ([tmp_path / "small"], "takes 3 channels at size 32"),
        ([model, "--steps", 4, "-o", tmp_path / "file" / "out"], "cannot be written"),
    ]:
        code, printed, error = compare(*arguments)
        assert (code, printed) == (2, "")
        assert sentence in error.strip().splitlines()[-1]
