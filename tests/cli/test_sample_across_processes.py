"""`iec sample` as launchers start it: several processes, one folder."""

import hashlib
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from tiny_models import ddim_pipe, tiny_unet

from iec.cli.app import main


@pytest.fixture
def model(tmp_path):
    ddim_pipe(tiny_unet()).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.png"))}


def arguments(model, out, images=7):
    return ["sample", model, "-n", str(images), "--steps", "3", "--batch-size", "2", "--threads", "1", "-o", str(out)]


@pytest.fixture
def iec(monkeypatch, capsys):
    """Run `iec` as one of several processes: its exit code, standard output and standard error."""

    def run(command, rank=None, world=None):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world)):
            monkeypatch.setenv(name, str(value)) if value is not None else monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "argv", ["iec", *command])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return run


def test_every_process_takes_its_part_and_the_last_one_says_what_it_cost(iec, model, tmp_path):
    assert iec(arguments(model, tmp_path / "one"))[0] == 0
    code, printed, error = iec(arguments(model, tmp_path / "two"), rank=1, world=2)
    assert code == 0
    assert "Process 1 of 2 has sampled its part" in printed
    assert error == ""  # the first process alone shows progress
    code, printed, error = iec(arguments(model, tmp_path / "two"), rank=0, world=2)
    assert "7 images in" in printed
    assert "7/7 images" in error
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_a_plan_is_calibrated_once_for_all_processes(iec, model, tmp_path):
    command = [*arguments(model, tmp_path / "out", images=4), "--quantize", "w8a8"]
    assert iec(command, rank=0, world=2)[0] == 0
    plan = (tmp_path / "out" / "plan" / "plan.safetensors").stat().st_mtime_ns
    assert iec(command, rank=1, world=2)[0] == 0
    assert (tmp_path / "out" / "plan" / "plan.safetensors").stat().st_mtime_ns == plan
    assert json.loads((tmp_path / "out" / "sampling.json").read_text())["complete"]
    assert not (tmp_path / "out" / ".plan.lock").exists()


def test_bad_settings_of_a_launcher_are_one_sentence(iec, model, tmp_path):
    code, printed, error = iec(arguments(model, tmp_path / "out"), rank=2, world=2)
    assert (code, printed) == (2, "")
    assert "whole numbers that a launcher sets" in error
    code, _, error = iec([*arguments(model, tmp_path / "out"), "--threads", "0"])
    assert code == 2
    assert "threads must be at least 1" in error
    assert not (tmp_path / "out").exists()


LAUNCHERS = {
    # Without a GPU it starts several processes only where it takes them for those of several GPUs, or by MPI.
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no",
    "torchrun": "torch.distributed.run --standalone --nproc-per-node 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_killed_and_launched_again_two_processes_make_the_bytes_of_one(iec, model, tmp_path, launcher):
    pytest.importorskip(LAUNCHERS[launcher].split(".")[0], reason="the launcher of the extra dist is not installed")

    def launch(out):
        command = [sys.executable, "-m", *LAUNCHERS[launcher].split(), "-m", "iec", *arguments(model, out, images=60)]
        environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
        return subprocess.Popen(command, env=environment | {"OMP_NUM_THREADS": "1"})

    assert iec(arguments(model, tmp_path / "one", images=60))[0] == 0
    killed = launch(tmp_path / "two")
    while len(digests(tmp_path / "two")) < 10 and killed.poll() is None:
        time.sleep(0.01)
    workers = psutil.Process(killed.pid).children(recursive=True)
    for process in (*workers, killed):
        process.kill()
    killed.wait()
    assert len(workers) >= 2
    assert len(digests(tmp_path / "two")) < 60
    assert launch(tmp_path / "two").wait() == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "sampling.json").read_text())["complete"]
