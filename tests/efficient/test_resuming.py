"""A calibration that is interrupted, anywhere and however, goes on to the very same plan."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_models import ddim_pipe, draw, on_evaluation, tiny_unet

from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig, ReconstructionConfig, calibrate
from iec.efficient.checkpoint import SECONDS, Checkpoint

STEPS, SAMPLES, BATCH = 4, 5, 2
BATCHES = 3
CONFIGS = {  # with the number of stages
    "quantized": (QuantizationConfig(weights=4, steps_per_group=3, bias_correction=True), 1),
    "cached": (DeepCacheConfig(2, schedule="dps"), 1),
    "both": (CacheQuantConfig(2, schedule="dps", bias_correction=True), 4),
}


def pipe_of(seed=0):
    return ddim_pipe(tiny_unet(seed))


def run(config, checkpoint=None, on_progress=lambda done, total: None, pipe=None, **settings):
    settings = {"samples": SAMPLES, "batch_size": BATCH, **settings}
    pipe = pipe_of() if pipe is None else pipe
    return calibrate(pipe, config, STEPS, **settings, checkpoint=checkpoint, on_progress=on_progress)


def saved(plan, folder):
    plan.save_pretrained(folder)
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the plans of calibrations that were not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: saved(run(config), folder / name) for name, (config, _) in CONFIGS.items()}


@pytest.fixture
def every_batch(monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", lambda checkpoint: True)


def interrupted(config, checkpoint, after, pipe=None):
    """Calibrate, but stop when `after` calls of on_progress were made."""
    told = []

    def stop(done, total):
        told.append((done, total))
        if len(told) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, checkpoint, stop, pipe)
    return told


def resumed(config, checkpoint):
    """The plan, what progress was told, and how many evaluations it took."""
    pipe, told, evaluations = pipe_of(), [], []
    with on_evaluation(pipe.unet, evaluations.append):
        plan = run(config, checkpoint, lambda done, total: told.append((done, total)), pipe)
    return plan, told, len(evaluations)


POINTS = [("quantized", 1), ("quantized", 3), ("cached", 2), *(("both", after) for after in (1, 4, 8, 9, 11, 12))]


@pytest.mark.usefixtures("every_batch")
@pytest.mark.parametrize(("name", "after"), POINTS)
def test_the_plan_is_the_same_byte_for_byte_wherever_it_was_interrupted(whole, tmp_path, name, after):
    config, stages = CONFIGS[name]
    pipe, checkpoint = pipe_of(), tmp_path / "deep" / "checkpoint"
    expected = draw(pipe)
    before = interrupted(config, checkpoint, after, pipe)
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    assert torch.equal(draw(pipe), expected)
    plan, told, evaluations = resumed(config, checkpoint)
    assert saved(plan, tmp_path / "plan") == whole[name]
    assert not checkpoint.exists()
    # Only what was missing is run; a stage that was taken up tells so.
    points = {SAMPLES * stage + done for stage in range(stages) for done in (2, 4, 5)}
    assert set(before) | set(told) == {(point, SAMPLES * stages) for point in points}
    left = stages * BATCHES - after
    shallow = 2 * STEPS // 4 * max(0, min(left, 2 * BATCHES) - BATCHES) if name == "both" else 0
    assert evaluations == left * STEPS + shallow


def test_by_default_only_whole_stages_are_written_by_so_short_a_calibration(whole, tmp_path):
    config, _ = CONFIGS["both"]
    interrupted(config, tmp_path / "checkpoint", 8)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "cache.safetensors",
        "checkpoint.json",
        "full_steps.safetensors",
    ]
    plan, told, _ = resumed(config, tmp_path / "checkpoint")
    assert told[:3] == [(5, 20), (10, 20), (12, 20)]
    assert saved(plan, tmp_path / "plan") == whole["both"]


def test_it_can_be_interrupted_again_and_again(whole, tmp_path, every_batch):
    config, _ = CONFIGS["both"]
    for after in (2, 2, 5, 3):
        interrupted(config, tmp_path / "checkpoint", after)
    assert saved(run(config, tmp_path / "checkpoint"), tmp_path / "plan") == whole["both"]


KILLED = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from efficient.test_resuming import CONFIGS, Checkpoint, run

torch.set_num_threads(1)
Checkpoint.due = lambda checkpoint: True
run(CONFIGS["both"][0], sys.argv[1], lambda done, total: print(done, flush=True))
"""


def test_a_killed_process_loses_nothing_but_its_last_batch(whole, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    arguments = [sys.executable, "-c", KILLED, str(checkpoint), str(Path(__file__).parents[1])]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(5):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    plan, told, _ = resumed(CONFIGS["both"][0], checkpoint)
    assert told[0] == (5, 20)
    assert len(told) <= 2 + 4 * BATCHES - 5
    assert saved(plan, tmp_path / "plan") == whole["both"]


def test_it_is_written_every_20_seconds_and_for_at_most_a_tenth_of_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path, {})
    seen = []

    def slow(path):
        now[0] += 5

    for write, wait in ((lambda path: None, SECONDS), (slow, SECONDS), (lambda path: None, 50), (slow, SECONDS)):
        assert not checkpoint.due()
        now[0] += wait - 1
        assert not checkpoint.due()
        now[0] += 1
        seen.append(checkpoint.due())
        monkeypatch.setattr("iec.efficient.checkpoint.write_atomically", lambda path, own, write=write: write(path))
        checkpoint.save("stage", 1, {})
    assert seen == [True] * 4


@pytest.mark.parametrize("after", [4, 8])
def test_reconstruction_goes_on_after_its_last_unit(tmp_path, every_batch, after):
    config = QuantizationConfig(weights=4, reconstruction=ReconstructionConfig("block", iterations=2, samples=4))
    expected = saved(run(config), tmp_path / "whole")
    told = interrupted(config, tmp_path / "checkpoint", after)
    plan, again, _ = resumed(config, tmp_path / "checkpoint")
    assert saved(plan, tmp_path / "plan") == expected
    assert not (tmp_path / "checkpoint").exists()
    units = told[0][1] - 2 * SAMPLES
    assert len(plan.units) == units > 4
    assert len({done for done, _ in told + again if done > 2 * SAMPLES}) == units


# Refusals


@pytest.fixture
def begun(tmp_path, every_batch):
    interrupted(CONFIGS["quantized"][0], tmp_path / "checkpoint", 2)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"config": QuantizationConfig(weights=8, steps_per_group=3)}, "config"),
        ({"config": DeepCacheConfig(2, schedule="dps")}, "config"),
        ({"pipe": pipe_of(seed=1)}, "model"),
        ({"pipe": ddim_pipe(tiny_unet(), beta_end=1e-3)}, "scheduler"),
        ({"samples": 6}, "number of samples"),
        ({"batch_size": 1}, "batch size"),
        ({"seed": 1}, "seed"),
        ({"inputs": {"eta": 1.0}}, "set of inputs"),
        ({"samples": 6, "seed": 1}, "number of samples and another seed"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_calibration_is_refused(begun, settings, name):
    before = {path.name: path.read_bytes() for path in begun.iterdir()}
    evaluations = []
    settings = {"config": CONFIGS["quantized"][0], "pipe": pipe_of(), **settings}
    with (
        on_evaluation(settings["pipe"].unet, evaluations.append),
        pytest.raises(ValueError, match=f"a calibration with another {name}: give another folder, or delete it"),
    ):
        run(checkpoint=begun, **settings)
    assert not evaluations
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == before


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(bytes(content))


def without_a_tensor(folder):
    checkpoint = Checkpoint.__new__(Checkpoint)
    checkpoint.path = folder
    done, state = checkpoint.load("activations")
    checkpoint.save("activations", done, {name: state[name] for name in state if "counts" not in name})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "checkpoint.json").write_text("{"),
        lambda folder: (folder / "checkpoint.json").write_text("[]"),
        lambda folder: (folder / "activations.safetensors").write_bytes(b""),
        lambda folder: (folder / "activations.safetensors").write_bytes(b"12345678" * 4),
        lambda folder: flip(folder / "activations.safetensors"),
        without_a_tensor,
    ],
)
def test_a_corrupt_checkpoint_says_so(begun, spoil):
    spoil(begun)
    with pytest.raises(ValueError, match="is corrupt: delete the folder and calibrate again"):
        run(CONFIGS["quantized"][0], begun)


def test_other_files_are_neither_used_nor_deleted(tmp_path, whole, every_batch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files: give a folder of its own"):
        run(CONFIGS["quantized"][0], tmp_path)
    with pytest.raises(ValueError, match="cannot be written"):
        run(CONFIGS["quantized"][0], tmp_path / "notes.txt")
    checkpoint = tmp_path / "checkpoint"
    interrupted(CONFIGS["quantized"][0], checkpoint, 1)
    (checkpoint / "notes.txt").write_text("mine")
    (checkpoint / ".activations.safetensors-x.part").write_bytes(b"half of a file, by a killed process")
    plan = run(CONFIGS["quantized"][0], checkpoint)
    assert [path.name for path in checkpoint.iterdir()] == ["notes.txt"]
    assert saved(plan, tmp_path / "plan") == whole["quantized"]


def test_inputs_are_told_apart_by_their_values(tmp_path, every_batch):
    config = CONFIGS["quantized"][0]
    pipe, base = pipe_of(), DDIMPipeline

    class Prompted(base):
        def __call__(self, prompt, guide=None, batch_size=1, **kwargs):
            return super().__call__(batch_size=batch_size, **kwargs)

    pipe.__class__ = Prompted

    def stop(done, total):
        raise KeyboardInterrupt

    inputs = {"prompt": ["a", "b"], "guide": torch.ones(2)}
    for same in (inputs, {"prompt": ["a", "b"], "guide": torch.ones(2)}):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path, stop, pipe, inputs=same)
    for other in ({**inputs, "prompt": ["a", "c"]}, {**inputs, "guide": torch.zeros(2)}, {"prompt": ["a", "b"]}):
        with pytest.raises(ValueError, match="another set of inputs"):
            run(config, tmp_path, stop, pipe, inputs=other)
    with pytest.raises(TypeError, match="cannot tell one object from another: calibrate without one"):
        run(config, tmp_path, stop, pipe, inputs={**inputs, "guide": object()})
    assert json.loads((tmp_path / "checkpoint.json").read_text())["set of inputs"]["prompt"] == ["a", "b"]


def test_refused_settings_leave_no_folder(tmp_path):
    with pytest.raises(ValueError, match="half of the steps"):
        run(CacheQuantConfig(9, schedule="dps"), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
