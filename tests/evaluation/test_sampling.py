import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import ddim_pipe, tiny_unet

import iec
from iec.efficient import DeepCacheConfig
from iec.evaluation.sampling import sample_to_folder


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.png"))}


def sample(folder, images=6, steps=4, **settings):
    return sample_to_folder(ddim_pipe(tiny_unet()), folder, images, steps, batch_size=2, **settings)


def test_the_record_holds_settings_seeds_and_cost(tmp_path):
    cache, correction = DeepCacheConfig(2), iec.IECConfig()
    sample(tmp_path, seed=7, technique=cache, correction=correction)
    record = json.loads((tmp_path / "sampling.json").read_text())
    assert record["generator_seeds"] == [7_000_000 + i for i in range(6)]
    assert record["settings"]["cache"]["interval"] == 2
    assert iec.IECConfig.from_dict(record["settings"]["correction"]) == correction
    # T=4, N=2: full at steps 0 and 2, each corrected once.
    assert (record["cost"]["full_evaluations"], record["cost"]["cached_evaluations"]) == (4, 2)
    fraction = record["cost"]["cached_evaluation_in_full"]
    assert record["cost"]["cost_per_image"] == pytest.approx(4 + 2 * fraction, abs=1e-3)
    assert len(digests(tmp_path)) == 6


def test_a_lost_image_and_leftovers_are_made_good_on_resumption(tmp_path):
    sample(tmp_path)
    expected = digests(tmp_path)
    (tmp_path / "000003.png").unlink()
    (tmp_path / ".000003.png-abc.part").write_bytes(b"half")
    started = []
    sample(tmp_path, on_start=started.append)
    assert started == [4]  # the batch of the lost image is sampled again, the others are not
    assert digests(tmp_path) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*expected, "sampling.json"])


def test_a_finished_run_samples_nothing_and_a_longer_one_only_the_rest(tmp_path):
    sample(tmp_path, images=3)
    first, batches = digests(tmp_path), []
    sample(tmp_path, images=3, on_batch=batches.append)
    assert batches == []
    sample(tmp_path, images=6, on_batch=batches.append)
    assert [batch.start for batch in batches] == [2, 4]  # image 3 completes the batch that was cut
    assert {name: digests(tmp_path)[name] for name in first} == first


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, "holds a run with seed 0, not 1"),
        ({"steps": 3}, "holds a run with num_steps 4, not 3"),
        ({"correction": iec.IECConfig()}, "holds a run with correction None"),
        ({"images": 4}, "already holds 6 images"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path, change, sentence):
    sample(tmp_path)
    before = digests(tmp_path), (tmp_path / "sampling.json").read_text()
    with pytest.raises(ValueError, match=sentence):
        sample(tmp_path, **change)
    assert (digests(tmp_path), (tmp_path / "sampling.json").read_text()) == before


def test_a_broken_record_is_refused(tmp_path):
    (tmp_path / "sampling.json").write_text("{")
    with pytest.raises(ValueError, match="is no record of a sampling run"):
        sample(tmp_path)


def test_images_without_a_record_are_not_overwritten(tmp_path):
    (tmp_path / "000000.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds images but no sampling\.json"):
        sample(tmp_path)
    assert (tmp_path / "000000.png").read_bytes() == b"mine"


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        sample(tmp_path / "file" / "below")


@pytest.mark.parametrize("settings", [{"technique": DeepCacheConfig(5)}, {"correction": iec.IECConfig(steps=[9])}])
def test_what_does_not_fit_the_steps_is_refused_before_the_folder_is_made(tmp_path, settings):
    with pytest.raises(ValueError, match="steps"):
        sample(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys
from tiny_models import ddim_pipe, tiny_unet
from iec.evaluation.sampling import sample_to_folder
sample_to_folder(ddim_pipe(tiny_unet()), sys.argv[1], 200, 4, batch_size=2)
"""


def test_killed_at_any_moment_a_run_resumes_to_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sample(whole, images=200)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(killed)], env=environment)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("*.png"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survivors = digests(killed)
    assert 20 <= len(survivors) < 200
    for name in survivors:  # nothing is half-written
        with Image.open(killed / name) as image:
            assert np.asarray(image).shape == (8, 8, 3)
    sample(killed, images=200)
    assert digests(killed) == digests(whole)
