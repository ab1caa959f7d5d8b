import errno
import json
import shutil
import sys
from unittest.mock import Mock

import pytest
from PIL import Image
from safetensors import SafetensorError
from tiny_models import ddim_pipe, tiny_unet

from iec.cli.app import main
from iec.evaluation import image_folder
from iec.storage import plan_files


@pytest.fixture
def model(tmp_path):
    ddim_pipe(tiny_unet()).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def iec(monkeypatch, capsys):
    """Run `iec` with these arguments: its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return run


def last_sentence(error):
    return error.strip().splitlines()[-1]


def test_sample_writes_images_and_prints_their_cost(iec, model, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = iec(
        "sample", model, "-n", 3, "--steps", 4, "--cache", "deepcache:2", "--correct", "steps=first", "-o", out,
        "--batch-size", 2,
    )  # fmt: skip
    assert code == 0
    assert "3 full and 2 cached evaluations per image" in printed
    assert sorted(file.name for file in out.glob("*.png")) == ["000000.png", "000001.png", "000002.png"]
    with Image.open(out / "000000.png") as image:
        assert image.size == (8, 8)


def test_json_is_all_that_standard_output_holds(iec, model, tmp_path):
    code, printed, _ = iec("sample", model, "-n", 1, "--steps", 2, "-o", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(printed)["settings"]["model"] == model


def test_a_spacing_is_recorded_and_changes_the_images(iec, model, tmp_path):
    for spacing in ("scheduler", "quad"):
        assert iec("sample", model, "-n", 1, "--steps", 4, "--spacing", spacing, "-o", tmp_path / spacing)[0] == 0
    assert json.loads((tmp_path / "quad" / "sampling.json").read_text())["settings"]["spacing"] == "quad"
    assert (tmp_path / "quad" / "000000.png").read_bytes() != (tmp_path / "scheduler" / "000000.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--correct", "relaxation=2"], "relaxation must lie in [0, 2)"),
        (["--correct", "relaxation=nan"], "relaxation must lie in [0, 2)"),
        (["--correct", "iterations=-1"], "num_iterations must not be negative"),
        (["--correct", "tolerance=-1"], "tolerance must be a finite number"),
        (["--correct", "steps=sometimes"], "Unknown step selector"),
        (["--correct", "steps=9"], "Step 9 was selected for correction, but this run has 4 steps"),
        (["--cache", "deepcache:0"], "interval must be at least 1"),
        (["--cache", "deepcache:5"], "A cache interval of 5 is longer than the run of 4 steps"),
        (["--cache", "deepcache:2,branch=9"], "Branch 9 does not exist"),
        (["--steps", "0"], "num_steps must be at least 1"),
        (["--seed", "2000"], "seed must lie in 0..1999"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--dtype", "int8"], "Unknown dtype 'int8'"),
        (["--spacing", "cubic"], "Unknown spacing 'cubic'"),
        (["--device", "quantum"], "device 'quantum' cannot be used"),
        (["--prompt", "a cat"], "takes no 'prompt'"),
        (["--no-such-option"], "No such option"),
        (["-n", "many"], "should be a valid integer"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(iec, model, tmp_path, arguments, sentence):
    out = tmp_path / "out"
    steps = [] if "--steps" in arguments else ["--steps", 4]
    code, printed, error = iec("sample", model, "-n", 2, *steps, "-o", out, *arguments)
    assert (code, printed) == (2, "")
    assert sentence in last_sentence(error)
    assert last_sentence(error).startswith("iec: ")
    assert not out.exists()


def test_bad_models_and_folders_are_one_sentence_and_exit_code_2(iec, model, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, sentence in [
        (["sample", tmp_path / "nowhere"], "There is no model folder"),
        (["sample", tmp_path], "is no diffusers model"),
        (["sample", model, "-o", tmp_path / "file" / "out"], "cannot be written"),
        (["demo", "-o", tmp_path / "file" / "out"], "cannot be written"),
        (["demo", "-n", 3], "at least 10 images"),
        (["demo", "--cachequant", "5"], "lacks the bits"),
        (["demo", "--cache", "deepcache:5", "--cachequant", "5,w8a8,branch=0"], "at one branch"),
        (["demo", "--plan", tmp_path / "nowhere"], "holds no plan"),
        (["reproduce", "table9"], "nothing called 'table9'"),
        (["reproduce", "efficient", "--size", "huge"], "Unknown size 'huge'"),
        (["reproduce", "figure1"], "comes with `iec analyze`"),
        (["reproduce", "figure7", "--available", "-o", tmp_path / "f", "--results", tmp_path / "m"], "DeepCache N=10"),
        (["calibrate", model], "Nothing to calibrate"),
        (["calibrate", model, "--quantize", "w1a8"], "weights must lie in 2..8"),
        (["calibrate", model, "--quantize", "w8a8", "--samples", 0], "samples must be at least 1"),
        (["calibrate", model, "--quantize", "w8a8", "-o", tmp_path / "file" / "out"], "cannot be written"),
        (["calibrate", model, "--cachequant", "9,w8a8,schedule=dps", "--steps", 10], "half of the steps"),
        (["calibrate", model, "--quantize", "w8a8", "--prompts", tmp_path / "no.txt"], "cannot be read"),
        (["train", tmp_path / "nowhere.npz", "-o", tmp_path / "run"], "There is no training data"),
        (["train-features", tmp_path / "no.npz", "--test", tmp_path / "no.npz", "-o", tmp_path / "run"], "no training"),
    ]:
        code, printed, error = iec(*arguments)
        assert (code, printed) == (2, "")
        assert sentence in last_sentence(error)


@pytest.mark.parametrize("command", ["calibrate", "demo", "reproduce", "sample", "train", "train-features"])
def test_every_command_has_help_with_an_example(iec, command):
    code, printed, _ = iec(command, "--help")
    assert code == 0
    assert f"Example: iec {command}" in printed


def test_a_full_disk_is_one_sentence_and_the_command_goes_on(iec, model, tmp_path, monkeypatch):
    """Images fail with the system's error; a plan, as safetensors has it, with one of its own."""
    system = OSError(errno.ENOSPC, "No space left on device")
    own = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    command = ["sample", model, "-n", 2, "--steps", 2, "--batch-size", 2, "-o", tmp_path / "out", "--quantize", "w8a8"]
    for module, name, error in ((image_folder, "_save_png", system), (plan_files, "save_file", own)):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, Mock(side_effect=error))
            code, printed, told = iec(*command)
        assert (code, printed) == (1, "")
        assert last_sentence(told) == (
            "iec: the disk is full: free some space and run the same command again; what it had finished is kept."
        )
        shutil.rmtree(tmp_path / "out" / "plan", ignore_errors=True)
    assert iec(*command)[0] == 0


def test_train_makes_a_model_that_sample_takes_and_resumes(iec, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32), ("red", "green")[i]).save(data / f"{i}.png")
    arguments = ["train", data, "-o", tmp_path / "run", "--batch-size", 2, "--held-out", data, "--json"]
    first = json.loads(iec(*arguments, "--iterations", 1)[1])
    assert first["iterations"] == 1
    assert len(first["held_out_loss"]) == 10
    assert json.loads(iec(*arguments, "--iterations", 2)[1])["iterations"] == 2
    code, printed, _ = iec(
        "sample", tmp_path / "run" / "model", "-n", 1, "--steps", 2, "--correct", "paper", "-o", tmp_path / "out"
    )
    assert code == 0
    assert "4 full" in printed


def test_a_plan_is_calibrated_saved_and_sampled_with(iec, model, tmp_path):
    plan = tmp_path / "plan"
    code, printed, _ = iec("calibrate", model, "--cachequant", "2,w8a8", "--steps", 4, "--samples", 4, "-o", plan)
    assert code == 0
    assert "The plan for 4 steps is in" in printed
    arguments = ["sample", model, "-n", 2, "--batch-size", 2]
    code, printed, _ = iec(*arguments, "--steps", 4, "--plan", plan, "-o", tmp_path / "from-plan")
    assert code == 0
    assert "2 full and 2 cached evaluations per image" in printed
    code, printed, error = iec(*arguments, "--steps", 5, "--plan", plan, "-o", tmp_path / "other")
    assert code == 2
    assert "4 steps" in last_sentence(error)
    code, _, error = iec(*arguments, "--plan", plan, "--quantize", "w8a8", "-o", tmp_path / "other")
    assert code == 2
    assert "--plan already says" in last_sentence(error)


def test_sample_calibrates_once_and_keeps_the_plan(iec, model, tmp_path):
    arguments = ["sample", model, "--steps", 3, "--batch-size", 1, "--quantize", "w8a8", "-o", tmp_path / "out"]
    assert iec(*arguments, "-n", 1)[0] == 0
    plan = (tmp_path / "out" / "plan" / "plan.safetensors").stat().st_mtime_ns
    first = (tmp_path / "out" / "000000.png").read_bytes()
    assert iec(*arguments, "-n", 2)[0] == 0
    assert (tmp_path / "out" / "plan" / "plan.safetensors").stat().st_mtime_ns == plan
    assert (tmp_path / "out" / "000000.png").read_bytes() == first
    code, _, error = iec(*[a if a != "w8a8" else "w4a8" for a in arguments], "-n", 2)
    assert code == 2
    assert "holds the plan of another technique" in last_sentence(error)


def test_a_forecast_is_calibrated_by_command_or_on_the_way(iec, model, tmp_path):
    plan, cache = tmp_path / "plan", ["--cache", "deepcache:2,branch=1,forecast", "--steps", 4]
    assert iec("calibrate", model, *cache, "-o", plan)[0] == 0
    sample = ["sample", model, "-n", 2, "--steps", 4]
    assert iec(*sample, "--plan", plan, "-o", tmp_path / "by-plan")[0] == 0
    code, printed, _ = iec(*sample, *cache, "-o", tmp_path / "by-itself")
    assert code == 0
    assert "2 full and 2 cached evaluations per image" in printed
    for name in ("000000.png", "000001.png"):
        assert (tmp_path / "by-plan" / name).read_bytes() == (tmp_path / "by-itself" / name).read_bytes()
    code, _, error = iec("sample", model, "--steps", 5, "--plan", plan, "-o", tmp_path / "other")
    assert code == 2
    assert "for 4 steps, but the run has 5" in last_sentence(error)
