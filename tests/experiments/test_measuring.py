import json

import pytest
import torch
from tiny_models import tiny_unet

import iec
from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.experiments import measuring
from iec.experiments.measuring import Measurements
from iec.experiments.plans import Calibration
from iec.experiments.samplers.sampling import PLAIN, Sampling
from iec.experiments.settings import Setting
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler

#: What stored rows are found by; another name or value among these loses hours of sampling.
KEYED = {
    "weights", "scheduler", "dtype", "num_steps", "technique", "plan", "correction", "seed", "images", "batch_size",
    "torch",
}  # fmt: skip


def unet():
    return tiny_unet(sample_size=32, block_out_channels=(4, 4), norm_num_groups=2)


def tiny_pipeline(spacing="quad", **settings):
    pipe = UnconditionalPipeline(unet(), SpacedDDIMScheduler(spacing=spacing))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def measurements(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "load_pipeline", tiny_pipeline)
    return Measurements(tmp_path / "results", "float32", 4, Calibration(4, 4))


@pytest.fixture
def keys(monkeypatch):
    """The settings of every key that is made."""
    made, digest = [], measuring.digest

    def noted(settings):
        made.append(json.loads(json.dumps(settings)))
        return digest(settings)

    monkeypatch.setattr(measuring, "digest", noted)
    return made


def test_the_key_of_a_plain_setting_holds_nothing_new(measurements, keys):
    measurements.find(Setting(4, DeepCacheConfig(2), iec.IECConfig.paper()), 12, 3)
    assert set(keys[0]) == KEYED
    found = {name: keys[0][name] for name in KEYED - {"weights", "torch", "correction"}}
    assert found == {
        "scheduler": "quad",
        "dtype": "float32",
        "num_steps": 4,
        "technique": {"kind": "DeepCacheConfig", "interval": 2, "schedule": "uniform", "centre": 15, "power": 1.4},
        "plan": None,
        "seed": 3,
        "images": 12,
        "batch_size": 4,
    }
    assert keys[0]["correction"] == iec.IECConfig.paper().to_dict()


def test_the_digest_of_a_key_is_what_it_was():
    settings = {"weights": "a", "scheduler": "quad", "seed": 0, "technique": None}
    assert measuring.digest(settings) == "94cf2c94aaaff98cd798"


def test_every_sampler_is_another_row_and_only_then_in_the_key(measurements, keys):
    samplers = [PLAIN, Sampling("heun"), Sampling("unipc"), Sampling(epsilon_scale=1.01), Sampling(time_shift=40)]
    for sampler in samplers:
        measurements.find(Setting(5, sampler=sampler), 12, 0)
    assert "sampler" not in keys[0]
    assert [key["sampler"]["solver"] for key in keys[1:]] == ["heun", "unipc", "ddim", "ddim"]
    assert len({json.dumps(key) for key in keys}) == len(samplers)


def test_a_row_of_a_solver_counts_its_evaluations(measurements):
    row = measurements.row(Setting(5, DeepCacheConfig(2), sampler=Sampling("heun")), 4, 0)
    assert (row.record["full_evaluations"], row.record["cached_evaluations"]) == (3, 2)
    assert row.record["setting"] == "DeepCache N=2, Heun 5 evaluations"
    again = measurements.find(Setting(5, DeepCacheConfig(2), sampler=Sampling("heun")), 4, 0)
    assert torch.equal(again.images, row.images)


@pytest.mark.parametrize("technique", [QuantizationConfig(), CacheQuantConfig(2, 0)])
@pytest.mark.parametrize("solver", ["heun", "dpm++2m", "unipc", "deis", "ipndm", "plms"])
def test_a_plan_is_calibrated_for_the_solver_and_the_timesteps_that_it_runs_with(tmp_path, technique, solver):
    # Packed weights are put back from the folder that the model came from.
    tiny_pipeline().save_pretrained(tmp_path / "model")
    measurements = Measurements(tmp_path, "float32", 4, Calibration(4, 4), model=str(tmp_path / "model"))
    setting = Setting(5, technique, sampler=Sampling(solver))
    row = measurements.row(setting, 4, 0)
    assert row.record["full_evaluations"] + row.record["cached_evaluations"] == 5
    pipe = measurements.pipeline(setting)
    plan = measurements.plans.find(pipe, setting)
    pipe.scheduler.set_timesteps(5)
    assert plan.sampler.scheduler == type(pipe.scheduler).__name__
    assert list(plan.sampler.timesteps) == pipe.scheduler.timesteps.tolist()
    assert plan.num_steps == 5


def test_changes_of_the_network_reach_the_workers_and_end_with_the_row(measurements):
    plain = measurements.row(Setting(4), 4, 0)
    changed = measurements.row(Setting(4, sampler=Sampling(epsilon_scale=1.3)), 4, 0)
    assert not torch.equal(plain.images, changed.images)
    assert (changed.record["full_evaluations"], changed.record["cached_evaluations"]) == (4, 0)


def test_calibration_images_are_others_than_any_seed_that_is_judged(measurements, keys):
    judged = measurements.row(Setting(4), 4, 1)
    calibration = measurements.row(Setting(4), 4, 1, calibration=True)
    assert [key["seed"] for key in keys] == [1, 2001]
    x = iec.initial_noise([iec.image_generator(2001, i) for i in range(4)], (3, 32, 32))
    x = iec.sample(unet(), x, num_steps=4, config=iec.IECConfig(num_iterations=0))
    assert torch.equal(calibration.images, ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
    assert not torch.equal(calibration.images, judged.images)


def test_a_users_model_has_its_noise_schedule_in_the_key(tmp_path, keys):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    own = Measurements(tmp_path, "float32", 4, Calibration(4, 4), model=str(tmp_path / "model"))
    own.find(Setting(4), 12, 0, "linspace")
    assert keys[0]["noise_schedule"]["beta_end"] == 0.02
    assert keys[0]["scheduler"] == "linspace"
