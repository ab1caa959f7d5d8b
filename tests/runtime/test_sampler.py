import json

import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from tiny_models import ddim_pipe, draw, tiny_unet

from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig, apply, calibrate, load_plan, remove
from iec.runtime import SpacedDDIMScheduler
from iec.runtime.sampler import Sampler

CONFIGS = [QuantizationConfig(), CacheQuantConfig(2), DeepCacheConfig(2, schedule="dps")]


def calibrated(pipe, config, num_steps=4):
    return calibrate(pipe, config, num_steps, samples=2, batch_size=2)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_plan_knows_its_sampler_and_says_so_before_the_first_evaluation(config, tmp_path):
    pipe = ddim_pipe(tiny_unet())
    plan = calibrated(pipe, config)
    expected = DDIMScheduler.from_config(pipe.scheduler.config)
    expected.set_timesteps(4)
    assert plan.sampler == Sampler("DDIMScheduler", tuple(map(float, expected.timesteps)))
    plan.save_pretrained(tmp_path / "plan")
    apply(pipe, tmp_path / "plan")
    draw(pipe, steps=4)
    evaluated = []
    pipe.unet.register_forward_hook(lambda *a: evaluated.append(1))
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="calibrated for DDIMScheduler, but the run uses UniPCMultistepScheduler"):
        draw(pipe, steps=4)
    pipe.scheduler = DDIMScheduler.from_config(expected.config, timestep_spacing="trailing")
    with pytest.raises(ValueError, match=r"calibrated for the timesteps 750, 500, 250, ... \(4\), but the run has 999"):
        draw(pipe, steps=4)
    with pytest.raises(ValueError, match="calibrated for 4 steps, but the run has 5"):
        draw(pipe, steps=5)
    assert evaluated == []
    remove(pipe)
    draw(pipe, steps=5)


def test_a_plan_without_a_sampler_is_not_checked(tmp_path):
    pipe = ddim_pipe(tiny_unet())
    calibrated(pipe, QuantizationConfig()).save_pretrained(tmp_path / "plan")
    settings = json.loads((tmp_path / "plan" / "plan.json").read_text())
    del settings["sampler"]
    (tmp_path / "plan" / "plan.json").write_text(json.dumps(settings))
    assert load_plan(tmp_path / "plan").sampler is None
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    apply(pipe, tmp_path / "plan")
    draw(pipe, steps=4)


def test_a_scheduler_that_needs_more_than_a_number_has_no_sampler():
    class Demanding:
        def set_timesteps(self, num_steps, mu):
            raise AssertionError("not reached")

    assert Sampler.of(Demanding(), 4) is None


def test_asking_for_the_sampler_leaves_the_scheduler_alone():
    scheduler = SpacedDDIMScheduler(spacing="quad")
    before = scheduler.timesteps.clone()
    found = Sampler.of(scheduler, 5)
    assert len(found.timesteps) == 5
    assert torch.equal(scheduler.timesteps, before)
