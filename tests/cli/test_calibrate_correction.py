"""`iec calibrate --correction`, and the folder that `iec sample --correct` takes."""

import json
import shlex
import sys

import pytest
from tiny_models import ddim_pipe, tiny_unet

from iec.cli.app import main
from iec.efficient import load_plan
from iec.experiments import deploying
from iec.pipelines import CorrectionPlan


@pytest.fixture
def model(tmp_path):
    ddim_pipe(tiny_unet()).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def iec(monkeypatch, capsys):
    """Run `iec` with these arguments: its exit code, standard output and the last line of standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, (output.err.strip().splitlines() or [""])[-1]

    return run


SMALL = ("--steps", 4, "--samples", 8, "--correction")


def told_command(printed):
    return printed.partition("Use it with: ")[2].splitlines()[0]


@pytest.mark.parametrize(
    ("technique", "folder"),
    [
        ([], ""),
        (["--quantize", "w8a8"], "correction"),
        (["--cachequant", "2,w8a8"], "correction"),
        (["--cache", "deepcache:2,schedule=dps"], "correction"),
        (["--cache", "deepcache:2"], "correction"),
    ],
)
def test_the_whole_deployed_model_is_in_one_folder_and_its_command_works(iec, model, tmp_path, technique, folder):
    code, printed, _ = iec("calibrate", model, *technique, *SMALL, "-o", tmp_path / "plan")
    assert code == 0
    assert "error of the final state" in printed
    assert "the solver" in printed
    plan = CorrectionPlan.from_pretrained(tmp_path / "plan" / folder)
    assert plan.report.corrected < plan.report.plain
    assert {path.name for path in tmp_path.iterdir()} == {"model", "plan"}  # nothing is left of the work
    command = shlex.split(told_command(printed))
    code, printed, _ = iec(*command[1:], "-n", 1, "--batch-size", 1, "-o", tmp_path / "out")
    assert code == 0
    record = json.loads((tmp_path / "out" / "sampling.json").read_text())
    assert record["settings"]["correction"]["kind"] == "calibrated"
    assert record["cost"]["full_evaluations"] + record["cost"]["cached_evaluations"] == 4


def test_json_holds_the_report(iec, model, tmp_path):
    options = ("--history", 1, "--no-bias", "--bands", 3, "--reference", "self", "--json")
    code, printed, _ = iec("calibrate", model, *SMALL, *options, "-o", tmp_path / "plan")
    assert code == 0
    found = json.loads(printed)
    assert found["correction"]["reference"] == "self"
    assert found["correction"]["solver_share"] == 1
    assert found["correction"]["fixed"] == {"history": 1, "bias": False, "bands": 3}
    assert found["command"] == f"iec sample {model} --correct {tmp_path / 'plan'} --steps 4"


def test_a_plan_is_corrected_in_its_place_or_in_another(iec, model, tmp_path):
    plan = tmp_path / "plan"
    assert iec("calibrate", model, "--quantize", "w8a8", "--steps", 4, "--samples", 8, "-o", plan)[0] == 0
    code, _, error = iec("calibrate", model, *SMALL, "-o", plan)
    assert code == 2
    assert f"to correct it, give --plan {plan} as well" in error
    code, _, error = iec("sample", model, "--steps", 4, "--plan", plan, "--correct", plan, "-o", tmp_path / "out")
    assert code == 2
    assert "without a correction: make one with iec calibrate --plan" in error
    before = (plan / "plan.safetensors").read_bytes()
    assert iec("calibrate", model, "--plan", plan, *SMALL)[0] == 0
    assert (plan / "plan.safetensors").read_bytes() == before
    assert iec("calibrate", model, "--plan", plan, *SMALL, "-o", tmp_path / "other")[0] == 0
    assert load_plan(tmp_path / "other").num_steps == 4
    first, second = (CorrectionPlan.from_pretrained(folder / "correction") for folder in (plan, tmp_path / "other"))
    assert first.fitted.coefficients.equal(second.fitted.coefficients)
    assert first.technique == second.technique


def test_a_reference_of_its_own(iec, model, tmp_path):
    ddim_pipe(tiny_unet(seed=1)).save_pretrained(tmp_path / "better")
    code, _, _ = iec("calibrate", model, *SMALL, "--reference", tmp_path / "better", "-o", tmp_path / "plan")
    assert code == 0
    assert CorrectionPlan.from_pretrained(tmp_path / "plan").report.reference == "given"
    code, _, error = iec("calibrate", model, *SMALL, "--reference", tmp_path / "nowhere", "-o", tmp_path / "plan")
    assert code == 2
    assert "There is no model folder" in error


def test_fitted_lambdas_of_iec_are_a_plan_too(iec, model, tmp_path):
    code, printed, _ = iec("calibrate", model, *SMALL, "--relaxation", "fitted", "-o", tmp_path / "plan")
    assert code == 0
    assert len(CorrectionPlan.from_pretrained(tmp_path / "plan").relaxations) == 4
    command = shlex.split(told_command(printed))
    assert iec(*command[1:], "-n", 1, "--batch-size", 1, "-o", tmp_path / "out")[0] == 0


class Interrupting:
    """A progress that interrupts a stage when half of it is done."""

    def __init__(self, stage):
        self.stage, self.told = stage, []

    def __call__(self, stage, done, total):
        self.told.append(stage)
        if stage == self.stage and 2 * done >= total:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", [deploying.CALIBRATING, deploying.FITTING])
def test_an_interrupted_calibration_goes_on_to_the_same_plans(iec, model, tmp_path, monkeypatch, stage):
    command = ("calibrate", model, "--quantize", "w8a8", *SMALL, "--batch-size", 2)
    assert iec(*command, "-o", tmp_path / "whole")[0] == 0
    shown = []
    for place, watched in enumerate((Interrupting(stage), Interrupting(None))):
        monkeypatch.setattr("iec.cli.calibrate.staged", lambda bar, watched=watched: watched)
        code, _, _ = iec(*command, "-o", tmp_path / "plan")
        assert code == (130, 0)[place]
        shown.append(watched.told)
    # What was finished is not calibrated again.
    assert (deploying.CALIBRATING in shown[1]) == (stage == deploying.CALIBRATING)
    for name in ("plan.safetensors", "correction/plan.safetensors"):
        assert (tmp_path / "plan" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "whole", "plan"}


def test_other_settings_do_not_go_on_from_what_was_interrupted(iec, model, tmp_path, monkeypatch):
    command = ["calibrate", model, "--quantize", "w8a8", "--correction", "--steps", 4, "-o", tmp_path / "plan"]
    told = Interrupting(deploying.FITTING)
    monkeypatch.setattr("iec.cli.calibrate.staged", lambda bar: told)
    assert iec(*command, "--samples", 8)[0] == 130
    told = Interrupting(None)
    code, _, error = iec(*command, "--samples", 9)
    assert code == 2
    assert not told.told
    assert "holds the checkpoint of a correction of another technique or calibration" in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--correction", "--samples", 7], "samples must be at least 8, but is 7"),
        (["--correction", "--bands", 2], "bands must be 1, 3 or None"),
        (["--correction", "--history", -1], "history must be at least 0"),
        (["--correction", "--relaxation", "free"], "relaxation must be 'fitted' or None"),
        (["--correction", "--relaxation", "fitted", "--bias"], "leave out history, bias and bands"),
        (["--history", 1], "--history belongs to --correction"),
        (["--no-bias"], "--bias belongs to --correction"),
        (["--reference", "self"], "--reference belongs to --correction"),
        ([], "Nothing to calibrate"),
        (["--plan", "nowhere", "--correction"], "holds no plan"),
        (["--plan", "nowhere", "--cache", "deepcache:2", "--correction"], "--plan already says what the model is"),
        (["--cache", "deepcache:5", "--correction"], "A cache interval of 5 is longer than the run of 4 steps"),
        (["--correction", "--steps", 0], "num_inference_steps must be at least 1"),
        (["--quantize", "w8a8", "--correction", "--samples", 7], "samples must be at least 8"),
        (["--correction", "--seed", 9999], "seed"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(iec, model, tmp_path, options, sentence):
    code, printed, error = iec("calibrate", model, "--steps", 4, "-o", tmp_path / "plan", *options)
    assert (code, printed) == (2, "")
    assert error.startswith("iec: ")
    assert sentence in error
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_scheduler_that_cannot_be_corrected_is_named_before_any_work(iec, tmp_path):
    ddim_pipe(tiny_unet(), clip_sample=True).save_pretrained(tmp_path / "clipping")
    code, _, error = iec("calibrate", tmp_path / "clipping", "--quantize", "w8a8", *SMALL, "-o", tmp_path / "plan")
    assert code == 2
    assert "clips or thresholds" in error
    assert not (tmp_path / "plan").exists()
