"""What a correction or its fit cannot take: one sentence each, before anything is evaluated, and nothing is changed."""

import json
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
)
from tiny_models import ddim_pipe, tiny_net, tiny_unet
from tiny_models import draw as draw_images

import iec
from iec.efficient import DeepCacheConfig, apply, remove
from iec.runtime import SpacedDDIMScheduler

from .models import NoisePipeline, Small, ddim, draw, quad

STEPS = 4


@contextmanager
def refused(pipe, error, sentence):
    """One sentence, no evaluation, and the pipeline as it was."""
    calls, cls, scheduler, attributes = pipe.unet.calls, type(pipe), pipe.scheduler, set(vars(pipe))
    own = set(vars(scheduler))
    with pytest.raises(error, match=sentence) as raised:
        yield
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert not re.search(r"[a-z)]\. [A-Z]", message)
    assert pipe.unet.calls == calls
    assert type(pipe) is cls
    assert pipe.scheduler is scheduler
    assert set(vars(pipe)) == attributes
    assert {"step", "set_timesteps"}.isdisjoint(vars(scheduler).keys() - own)


def pipe_of(scheduler=None, seed=0):
    return NoisePipeline(Small(seed), quad() if scheduler is None else scheduler)


@pytest.fixture(scope="module")
def plan():
    return iec.calibrate_correction(pipe_of(), STEPS, samples=8, substeps=2, history=1, bands=1, bias=True)


@pytest.fixture(scope="module")
def lambdas():
    reference = pipe_of()
    return iec.calibrate_correction(pipe_of(), STEPS, samples=8, reference=reference, relaxation="fitted")


# A plan, when it is enabled


def test_another_model_is_refused(plan, lambdas):
    for one in (plan, lambdas):
        pipe = pipe_of(seed=1)
        with refused(pipe, ValueError, f"fingerprint {plan.model}.* calibrate this model"):
            iec.enable(pipe, one)


def test_a_refused_plan_leaves_the_correction_that_was_there(plan):
    pipe = pipe_of(seed=1)
    iec.enable(pipe, iec.AdamsConfig(0.6))
    expected = draw(pipe, steps=STEPS)
    with refused(pipe, ValueError, "fingerprint"):
        iec.enable(pipe, plan)
    assert torch.equal(draw(pipe, steps=STEPS), expected)


def test_another_technique_is_refused_when_enabled_and_when_it_comes_later():
    pipe = ddim_pipe(tiny_unet())
    plan = iec.calibrate_correction(pipe, STEPS, samples=8, substeps=2, history=1, bands=1)
    iec.enable(pipe, plan)
    expected = draw_images(pipe, STEPS)
    apply(pipe, DeepCacheConfig(2, branch=0))
    with pytest.raises(ValueError, match=r"technique 'none', but the pipeline runs with 'DeepCacheConfig\(.*calibrate"):
        draw_images(pipe, STEPS)
    with pytest.raises(ValueError, match="technique 'none'"):
        iec.enable(pipe, plan)
    remove(pipe)
    assert torch.equal(draw_images(pipe, STEPS), expected)


def test_another_number_of_channels_is_another_model():
    plan = iec.calibrate_correction(ddim_pipe(tiny_net()), STEPS, samples=8, history=0, bias=True)
    pipe = ddim_pipe(tiny_net(in_channels=4))
    with pytest.raises(ValueError, match="calibrate this model"):
        iec.enable(pipe, plan)


# A plan, when it runs


@pytest.mark.parametrize("kind", ["outputs", "lambdas"])
@pytest.mark.parametrize(
    ("scheduler", "steps", "sentence"),
    [
        (quad, 5, "calibrated for 4 steps, but the run has 5: sample with 4 steps"),
        (lambda: SpacedDDIMScheduler(spacing="linspace"), 4, "timesteps 800, .* but the run has 999"),
        (ddim, 4, "calibrated with SpacedDDIMScheduler, but the run uses DDIMScheduler"),
        (EulerDiscreteScheduler, 4, "calibrated with SpacedDDIMScheduler, but the run uses EulerDiscreteScheduler"),
    ],
    ids=["steps", "spacing", "DDIM", "Euler"],
)
def test_another_grid_is_refused(plan, lambdas, scheduler, steps, sentence, kind):
    pipe = pipe_of(scheduler())
    iec.enable(pipe, plan if kind == "outputs" else lambdas)
    with refused(pipe, ValueError, sentence):
        draw(pipe, steps=steps)


def test_another_shift_is_refused():
    pipe = pipe_of(FlowMatchEulerDiscreteScheduler(shift=3.0))
    plan = iec.calibrate_correction(pipe, STEPS, samples=8, substeps=2, history=1, bands=1)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    iec.enable(pipe, plan)
    with refused(pipe, ValueError, "same scheduler, spacing and shift"):
        draw(pipe, steps=STEPS)


def test_timesteps_that_were_set_before_the_call_are_checked_too(plan, lambdas):
    class SetBefore(NoisePipeline):
        @torch.no_grad()
        def __call__(self, x):
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.unet(x, t), t, x, return_dict=False)[0]
            return x

    for one in (plan, lambdas):
        pipe = SetBefore(Small(), quad())
        pipe.scheduler.set_timesteps(5)
        iec.enable(pipe, one)
        with pytest.raises(ValueError, match="calibrated for 4 steps, but the run has 5"):
            pipe(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
        assert pipe.unet.calls <= 1  # only the first step shows it


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, LCMScheduler, EulerAncestralDiscreteScheduler], ids=lambda make: make.__name__
)
def test_a_stochastic_scheduler_is_refused_for_a_plan_too(plan, scheduler):
    pipe = pipe_of(scheduler())
    iec.enable(pipe, plan)
    with refused(pipe, iec.IECUnsupportedError, "draws noise at its steps"):
        draw(pipe, steps=STEPS)


# The fit


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (DDPMScheduler, "DDPMScheduler draws noise"),
        (EulerAncestralDiscreteScheduler, "draws noise at its steps"),
        (LCMScheduler, "draws noise at its steps"),
        (HeunDiscreteScheduler, "HeunDiscreteScheduler.* several parts .* use DDIMScheduler"),
        (lambda: DDIMScheduler(clip_sample=True), "clips or thresholds its .*clip_sample=False"),
        (lambda: DDIMScheduler(clip_sample=False, thresholding=True), "clips or thresholds"),
    ],
    ids=["DDPM", "Euler ancestral", "LCM", "Heun", "DDIM, clipping", "DDIM, thresholding"],
)
@pytest.mark.parametrize("steps", [2, 4])
def test_a_scheduler_that_cannot_be_fitted_to_is_refused(scheduler, sentence, steps):
    pipe = pipe_of(scheduler())
    with refused(pipe, ValueError, sentence):
        iec.calibrate_correction(pipe, steps, samples=8)


class Wide(Small):
    config = {"in_channels": 4}  # noqa: RUF012 (as diffusers has it)


REFERENCES = {
    "other latents": (lambda: NoisePipeline(Wide(), quad()), "unet has in_channels 4, but this pipeline's None"),
    "another scheduler": (lambda: pipe_of(ddim()), "has a DDIMScheduler, but this pipeline a SpacedDDIMScheduler"),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_that_cannot_have_the_same_states_is_refused(name):
    make, sentence = REFERENCES[name]
    pipe, reference = pipe_of(), make()
    with refused(pipe, ValueError, sentence):
        iec.calibrate_correction(pipe, STEPS, samples=8, reference=reference)
    assert reference.unet.calls == 0


def test_a_reference_of_another_size_is_refused_at_its_first_state():
    pipe, reference = pipe_of(), NoisePipeline(Small(), quad(), size=6)
    with pytest.raises(ValueError, match=r"latents of shape \[3, 6, 6\], but this pipeline of \[3, 8, 8\]"):
        iec.calibrate_correction(pipe, STEPS, samples=8, reference=reference, history=1, bands=1)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"samples": 7}, ValueError, "samples must be at least 8, but is 7"),
        ({"samples": 8.0}, TypeError, "samples must be an integer"),
        ({"samples": True}, TypeError, "samples must be an integer"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": "10"}, TypeError, "num_inference_steps must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"substeps": 0}, ValueError, "substeps must be at least 1"),
        ({"history": -1}, ValueError, "history must be at least 0"),
        ({"history": 1.5}, TypeError, "history must be an integer"),
        ({"bias": 1}, TypeError, "bias must be True, False or None"),
        ({"bands": 2}, ValueError, "bands must be 1, 3 or None"),
        ({"relaxation": 0.5}, ValueError, "relaxation must be 'fitted' or None"),
        ({"relaxation": "fitted", "history": 2}, ValueError, "leave out history, bias and bands"),
        ({"relaxation": "fitted", "history": 0}, ValueError, "leave out history, bias and bands"),
        ({"relaxation": "fitted", "bias": False}, ValueError, "leave out history, bias and bands"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 2000}, ValueError, "seed must lie in 0..1999"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"reference": "other"}, TypeError, "reference must be a pipeline, None or 'self'"),
        ({"reference": 3}, TypeError, "reference must be a pipeline, None or 'self'"),
        ({"inputs": {"prompt": "a"}}, ValueError, "takes no 'prompt'"),
        ({"inputs": {"guidance_scale": []}}, ValueError, "'guidance_scale' is an empty list"),
        ({"inputs": "a"}, TypeError, "inputs must be"),
    ],
)
def test_bad_settings_are_refused(settings, error, sentence):
    pipe = pipe_of()
    with refused(pipe, error, sentence):
        iec.calibrate_correction(pipe, **{"num_inference_steps": STEPS, "samples": 8, **settings})


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(TypeError, match="A diffusers pipeline is needed"):
        iec.calibrate_correction(Small())
    with pytest.raises(TypeError, match="A diffusers pipeline is needed"):
        iec.enable(Small(), iec.AdamsConfig())


def test_a_run_that_begins_inside_is_not_fitted_to():
    for substeps in (1, 3):
        with pytest.raises(ValueError, match="begins inside its timesteps"):
            iec.calibrate_correction(pipe_of(), STEPS, samples=8, substeps=substeps, inputs={"begin": 1})


# A folder


def test_a_folder_of_another_kind_is_refused(plan, tmp_path):
    pipe = pipe_of()
    with refused(pipe, ValueError, "holds no plan"):
        iec.enable(pipe, tmp_path)
    plan.save_pretrained(tmp_path / "plan")
    path = tmp_path / "plan" / "plan.json"
    settings = json.loads(path.read_text())

    def written(**changes):
        path.write_text(json.dumps({**settings, **changes}))
        return tmp_path / "plan"

    with refused(pipe, ValueError, "schema 9, but this version of iec reads schema"):
        iec.enable(pipe, written(schema=9))
    with refused(pipe, ValueError, "of kind 'quantization', not 'correction'"):
        iec.enable(pipe, written(kind="quantization"))
    for name in ("sampler", "model", "report", "latent", "channel_axis", "full_steps"):
        path.write_text(json.dumps({key: value for key, value in settings.items() if key != name}))
        with refused(pipe, ValueError, "is incomplete"):
            iec.enable(pipe, tmp_path / "plan")
    with refused(pipe, ValueError, "is incomplete"):
        iec.enable(pipe, written(report={**settings["report"], "new": 1}))
    path.write_text("{")
    with refused(pipe, ValueError, "corrupt"):
        iec.enable(pipe, tmp_path / "plan")
    iec.enable(pipe, written())
    (tmp_path / "plan" / "plan.safetensors").write_bytes(b"nothing")
    with refused(pipe, ValueError, "corrupt"):
        iec.enable(pipe, tmp_path / "plan")


def test_a_plan_whose_tensors_are_missing_is_refused(plan, tmp_path):
    replace(plan, fitted=None).save_pretrained(tmp_path / "plan")
    with pytest.raises(ValueError, match="incomplete"):
        iec.CorrectionPlan.from_pretrained(tmp_path / "plan")


@pytest.mark.parametrize("config", [0.5, {"relaxation": 0.5}, iec.IECConfig, torch.zeros(1)])
def test_what_is_no_correction_is_refused(config):
    pipe = pipe_of()
    with refused(pipe, TypeError, "config must be an iec.IECConfig, iec.AdamsConfig, iec.CorrectionPlan"):
        iec.enable(pipe, config)
