import errno
import hashlib
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from models.paper_folders import save_paper_model, small_paper_model
from PIL import Image
from tiny_models import ddim_pipe, seeded, tiny_unet
from torch.utils.flop_counter import FlopCounterMode

import iec
from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig, calibrate
from iec.evaluation.cost import evaluation_cost
from iec.evaluation.network_call import made_up_call
from iec.evaluation.processes import ALONE, Share
from iec.evaluation.sampling import sample_to_folder
from iec.models.fixed_heads import FixedHeadsUNet2DModel
from iec.models.loading import load_pipeline


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
    assert "forecast" not in record["settings"]["cache"]  # nor in folders from before there was one
    assert iec.IECConfig.from_dict(record["settings"]["correction"]) == correction
    # T=4, N=2: full at steps 0 and 2, each corrected once.
    assert (record["cost"]["full_evaluations"], record["cost"]["cached_evaluations"]) == (4, 2)
    fraction = record["cost"]["cached_evaluation_in_full"]
    assert record["cost"]["cost_per_image"] == pytest.approx(4 + 2 * fraction, abs=1e-3)
    assert len(digests(tmp_path)) == 6


@pytest.mark.parametrize(
    "config",
    [DeepCacheConfig(2, schedule="dps"), DeepCacheConfig(2, forecast=True), QuantizationConfig(), CacheQuantConfig(2)],
)
def test_the_cost_of_an_applied_plan_is_reported(tmp_path, config):
    calibrate(ddim_pipe(tiny_unet()), config, 4, samples=2).save_pretrained(tmp_path / "plan")
    sample(tmp_path / "out", technique=tmp_path / "plan")
    cost = json.loads((tmp_path / "out" / "sampling.json").read_text())["cost"]
    assert cost["full_evaluation_multiply_adds"] == evaluation_cost(tiny_unet(), made_up_call(tiny_unet())).full
    assert (cost["cached_evaluation_in_full"] < 1) is not isinstance(config, QuantizationConfig)


def test_the_cost_of_a_class_of_ours_is_reported(tmp_path):
    settings = {name: value for name, value in tiny_unet().config.items() if not name.startswith("_")}
    ours = ddim_pipe(seeded(FixedHeadsUNet2DModel(num_attention_heads=2, **settings)))
    record = sample_to_folder(ours, tmp_path / "ours", 2, 2).to_dict()
    assert record["cost"]["cost_per_image"] == 2


def test_with_guidance_an_evaluation_is_both_its_rows_and_a_step_of_plms_is_a_call_more(tmp_path):
    model = small_paper_model("coco")
    save_paper_model(model, tmp_path / "model")
    pipe = load_pipeline(tmp_path / "model")
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    inputs = {"prompt": "a", "guidance_scale": 7.5}
    record = sample_to_folder(pipe, tmp_path / "out", 2, 4, batch_size=2, inputs=inputs).to_dict()
    unet = pipe.unet
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    with FlopCounterMode(display=False) as counter:
        unet(torch.zeros(2, 4, size, size), 1, encoder_hidden_states=torch.zeros(2, tokens(pipe), width))
    assert record["cost"]["full_evaluation_multiply_adds"] == counter.get_total_flops() // 2
    assert record["cost"]["full_evaluations"] == 5


def tokens(pipe):
    return pipe.text_encoder.config.max_position_embeddings


def test_a_lost_image_and_leftovers_are_made_good_on_resumption(tmp_path):
    sample(tmp_path)
    expected = digests(tmp_path)
    (tmp_path / "000003.png").unlink()
    (tmp_path / ".000003.png-abc.part").write_bytes(b"half")
    counts = []
    sample(tmp_path, on_progress=counts.append)
    assert counts == [4, 6]  # the batch of the lost image is sampled again, the others are not
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


def start(folder, share=ALONE, images=100):
    """A process of its own that samples; a fork, since a fresh interpreter would take seconds to import torch."""
    process = multiprocessing.get_context("fork").Process(
        target=sample, args=(folder, images), kwargs={"share": share}, daemon=True
    )
    process.start()
    return process


def kill_after(folder, images, *processes):
    """Kill -9 the processes once there are that many images."""
    while len(list(folder.glob("*.png"))) < images:
        assert any(process.is_alive() for process in processes)
        time.sleep(0.001)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def test_killed_at_any_moment_a_run_resumes_to_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sample(whole, images=100)
    kill_after(killed, 20, start(killed))
    survivors = digests(killed)
    assert 20 <= len(survivors) < 100
    for name in survivors:  # nothing is half-written
        with Image.open(killed / name) as image:
            assert np.asarray(image).shape == (8, 8, 3)
    assert not json.loads((killed / "sampling.json").read_text())["complete"]
    sample(killed, images=100)
    assert digests(killed) == digests(whole)
    assert sorted(p.name for p in killed.iterdir()) == sorted([*digests(whole), "sampling.json"])


def record(folder):
    """What `sampling.json` says but for times and memory."""
    found = json.loads((folder / "sampling.json").read_text())
    for entry in (found["cost"], *found["batches"].values()):
        del entry["seconds"], entry["peak_memory_mb"]
    return found


def test_two_processes_make_the_bytes_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    sample(one, images=61)
    processes = [start(two, Share(rank, 2), images=61) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert digests(two) == digests(one)
    assert record(two) == record(one)
    assert record(two)["complete"]
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())


def test_a_share_alone_is_not_complete_and_the_last_one_completes_it(tmp_path):
    started, first = [], []
    assert not sample(tmp_path, images=10, share=Share(1, 2), on_batch=started.append).complete
    assert [batch.start for batch in started] == [2, 6]
    assert not json.loads((tmp_path / "sampling.json").read_text())["complete"]
    assert sample(tmp_path, images=10, share=Share(0, 2), on_batch=first.append).complete
    assert [batch.start for batch in first] == [0, 4, 8]
    assert json.loads((tmp_path / "sampling.json").read_text())["complete"]


@pytest.mark.parametrize("resumed_by", [1, 2, 3])
def test_two_killed_processes_are_resumed_by_any_number(tmp_path, resumed_by):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sample(whole, images=60)
    kill_after(killed, 20, *(start(killed, Share(rank, 2), images=60) for rank in range(2)))
    done = digests(killed)
    assert len(done) < 60
    outcomes = [sample(killed, images=60, share=Share(rank, resumed_by)).complete for rank in range(resumed_by)]
    assert outcomes == [False] * (resumed_by - 1) + [True]
    assert digests(killed) == digests(whole)
    assert record(killed) == record(whole)


def test_one_killed_process_of_two_leaves_the_run_incomplete_but_whole(tmp_path):
    whole, partly = tmp_path / "whole", tmp_path / "partly"
    sample(whole, images=60)
    victim = start(partly, Share(0, 2), images=60)
    kill_after(partly, 10, victim)
    survivor = start(partly, Share(1, 2), images=60)
    survivor.join()
    assert survivor.exitcode == 0
    assert not json.loads((partly / "sampling.json").read_text())["complete"]
    assert {name for name in digests(whole) if int(name[:6]) // 2 % 2 == 1} <= set(digests(partly))
    sample(partly, images=60)
    assert digests(partly) == digests(whole)


def test_of_two_runs_with_other_settings_one_is_refused_however_they_start(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder, barrier, refused = tmp_path / str(attempt), context.Barrier(2), context.Queue()

        def run(seed, folder=folder, barrier=barrier, refused=refused):
            barrier.wait()
            try:
                sample(folder, images=2, seed=seed)
            except ValueError as error:
                refused.put(str(error))

        processes = [context.Process(target=run, args=(seed,), daemon=True) for seed in (0, 1)]
        for process in processes:
            process.start()
        sentence = refused.get(timeout=300)
        for process in processes:
            process.join()
        assert "holds a run with seed" in sentence
        winner = json.loads((folder / "sampling.json").read_text())["settings"]["seed"]
        sample(tmp_path / f"alone-{attempt}", images=2, seed=winner)
        assert digests(folder) == digests(tmp_path / f"alone-{attempt}")


def test_a_full_disk_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    import iec.evaluation.image_folder as module

    original = module._save_png

    def save(pixels, file):
        if ".000003" in file.name:
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(pixels, file)

    monkeypatch.setattr(module, "_save_png", save)
    with pytest.raises(OSError, match="No space left"):
        sample(tmp_path / "full")
    assert sorted(digests(tmp_path / "full")) == ["000000.png", "000001.png", "000002.png"]
    monkeypatch.undo()
    sample(tmp_path / "full")
    sample(tmp_path / "whole")
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")
