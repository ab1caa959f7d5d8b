"""`iec sample --correct` with what costs no evaluation."""

import json
import sys

import pytest
from tiny_models import ddim_pipe, tiny_unet

from iec.cli.app import main
from iec.efficient import QuantizationConfig, apply, calibrate
from iec.fitting import calibrate_correction
from iec.models.loading import load_pipeline


@pytest.fixture
def model(tmp_path):
    ddim_pipe(tiny_unet()).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def iec(monkeypatch, capsys):
    """Run `iec sample` with these arguments: its exit code, standard output and the last line of standard error."""

    def run(*arguments, rank=None, world=None):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world)):
            monkeypatch.setenv(name, str(value)) if value is not None else monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "argv", ["iec", "sample", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, (output.err.strip().splitlines() or [""])[-1]

    return run


def recorded(folder):
    return json.loads((folder / "sampling.json").read_text())["settings"]["correction"]


@pytest.mark.parametrize(
    ("correct", "evaluations", "record"),
    [
        ("adams", 4, {"kind": "adams", "relaxation": 0.7}),
        ("adams,relaxation=0.6", 4, {"kind": "adams", "relaxation": 0.6}),
        ("calibrated,history=1,bands=1,bias=true", 4, {"kind": "calibrated", "history": 1, "bands": 1, "bias": True}),
        ("released", 12, {"num_iterations": 2}),
    ],
)
def test_every_kind_is_sampled_counted_and_recorded(iec, model, tmp_path, correct, evaluations, record):
    out = tmp_path / "out"
    code, printed, _ = iec(model, "-n", 1, "--batch-size", 1, "--steps", 4, "--correct", correct, "-o", out)
    assert code == 0
    assert f"{evaluations} full" in printed
    assert record.items() <= recorded(out).items()


def test_a_correction_is_fitted_once_and_used_again(iec, model, tmp_path):
    out = tmp_path / "out"
    command = [model, "--steps", 3, "--batch-size", 1, "--quantize", "w8a8", "-o", out, "--correct"]
    assert iec(*command, "calibrated", "-n", 1)[0] == 0
    plan, first = out / "correction" / "plan.safetensors", (out / "000000.png").read_bytes()
    made = plan.stat().st_mtime_ns
    assert iec(*command, "calibrated", "-n", 2)[0] == 0
    assert plan.stat().st_mtime_ns == made
    assert (out / "000000.png").read_bytes() == first
    for other, sentence in [
        ("calibrated,history=1", "holds the plan of another correction"),
        ("relaxation=fitted", "holds the plan of another correction"),
        ("adams", "holds a run with correction"),
        ("none", "holds a run with correction"),
    ]:
        code, _, error = iec(*command, other, "-n", 2)
        assert code == 2
        assert sentence in error


def test_iecs_fitted_relaxation_is_fitted_by_itself(iec, model, tmp_path):
    out = tmp_path / "out"
    code, _, _ = iec(model, "-n", 1, "--batch-size", 1, "--steps", 3, "--correct", "relaxation=fitted", "-o", out)
    assert code == 0
    assert recorded(out)["kind"] == "fitted relaxation"


def test_one_of_several_processes_fits(iec, model, tmp_path):
    out = tmp_path / "out"
    command = [model, "-n", 2, "--batch-size", 1, "--steps", 3, "--correct", "calibrated", "--threads", 1, "-o", out]
    assert iec(*command, rank=0, world=2)[0] == 0
    made = (out / "correction" / "plan.safetensors").stat().st_mtime_ns
    assert iec(*command, rank=1, world=2)[0] == 0
    assert (out / "correction" / "plan.safetensors").stat().st_mtime_ns == made
    assert json.loads((out / "sampling.json").read_text())["complete"]
    assert not (out / ".plan.lock").exists()


@pytest.fixture
def deployed(model, tmp_path):
    """The folder of a technique with its correction inside."""
    pipe = load_pipeline(model)
    calibrate(pipe, QuantizationConfig(), 4, samples=8).save_pretrained(tmp_path / "plan")
    apply(pipe, tmp_path / "plan")
    calibrate_correction(pipe, 4, samples=8).save_pretrained(tmp_path / "plan" / "correction")
    return tmp_path / "plan"


def test_a_plan_of_the_same_technique_corrects_and_its_numbers_are_recorded(iec, model, tmp_path, deployed):
    out = tmp_path / "out"
    command = [model, "-n", 1, "--batch-size", 1, "--steps", 4, "--plan", deployed, "--correct", deployed, "-o", out]
    assert iec(*command)[0] == 0
    assert iec(*command)[0] == 0
    pipe = load_pipeline(model)
    apply(pipe, deployed)
    calibrate_correction(pipe, 4, samples=9).save_pretrained(deployed / "correction")
    code, _, error = iec(*command)
    assert code == 2
    assert "holds a run with correction" in error  # and not with another plan: the technique's numbers are the same


def test_a_plan_that_does_not_fit_is_one_sentence_and_nothing_is_made(iec, model, tmp_path, deployed):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "correction").mkdir(parents=True)
    ddim_pipe(tiny_unet(seed=1)).save_pretrained(tmp_path / "other")
    for options, sentence in [
        ([model, "--correct", deployed, "--steps", 4], "calibrated with the technique"),
        ([model, "--plan", deployed, "--correct", deployed, "--steps", 5], "calibrated for 4 steps, but the run has 5"),
        ([model, "--correct", tmp_path / "empty", "--steps", 4], "holds no plan"),
        ([model, "--correct", tmp_path / "half", "--steps", 4], "holds no plan"),
        ([model, "--correct", tmp_path / "nowhere", "--steps", 4], "neither a correction nor a folder"),
        ([model, "--correct", "adam", "--steps", 4], "neither a correction nor a folder"),
        ([model, "--correct", "adams,relaxation=2", "--steps", 4], "relaxation must lie in [0, 2)"),
        ([model, "--correct", "calibrated,bands=2", "--steps", 4], "bands must be 1, 3 or None"),
        ([model, "--quantize", "w8a8", "--correct", "calibrated,bands=2", "--steps", 4], "bands must be 1, 3 or None"),
        ([model, "--correct", "calibrated,depth=2", "--steps", 4], "Unknown setting 'depth'"),
    ]:
        code, printed, error = iec(*options, "-n", 1, "-o", tmp_path / "out")
        assert (code, printed) == (2, "")
        assert error.startswith("iec: ")
        assert sentence in error
        assert not (tmp_path / "out").exists()
