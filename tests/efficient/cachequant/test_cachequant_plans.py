"""CacheQuant's plans on disk, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import draw, noise, recorded_inputs, tiny_unet

import iec
from iec.efficient import CacheQuantConfig, CacheQuantPlan, DeepCacheConfig, apply, calibrate, load_plan
from iec.efficient.caching.deepcache import branch_of
from iec.models.loading import load_pipeline

from .small import BRANCH, CACHE, SETTINGS, STEPS, pipe_of


@pytest.mark.parametrize("which", ["cache_plan", "plan"])
def test_a_plan_is_the_same_after_a_round_trip(request, tmp_path, which):
    made = request.getfixturevalue(which)
    made.save_pretrained(tmp_path)
    loaded = load_plan(tmp_path)
    assert isinstance(loaded, CacheQuantPlan)
    for name in ("config", "num_steps", "model", "full_steps"):
        assert getattr(loaded, name) == getattr(made, name)
    assert all(torch.equal(a, b) for a, b in zip(loaded.feature, made.feature, strict=True))
    assert loaded.layers.keys() == made.layers.keys()
    images = []
    for source in (made, tmp_path):
        pipe = pipe_of()
        apply(pipe, source)
        images.append(draw(pipe, STEPS))
    assert torch.equal(*images)


def test_a_plan_of_the_embedded_model_at_100_steps_is_below_15_megabytes(tmp_path):
    sizes = []
    for steps in (2, 4):  # what a step adds is always the same
        made = calibrate(load_pipeline(), CacheQuantConfig(2), steps, samples=1, batch_size=1)
        made.save_pretrained(tmp_path / str(steps))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / str(steps)).rglob("*") if path.is_file()))
    per_step = (sizes[1] - sizes[0]) / 2
    assert per_step > 1000
    assert sizes[0] + 98 * per_step < 15e6


def edit(folder, **changes):
    settings = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "quantization" / "plan.json").unlink(), r"no plan\.json in it"),
        (lambda f: (f / "plan.safetensors").write_bytes(b"x"), "corrupt"),
        (lambda f: edit(f, schema=7), "schema 7"),
        (lambda f: edit(f, layers=["nothing"]), "incomplete"),
        (lambda f: edit(f, kind="quantization"), "incomplete"),
        (lambda f: edit(f / "quantization", kind="cachequant"), "kind 'cachequant', not 'quantization'"),
    ],
)
def test_a_spoiled_plan_is_refused(plan, tmp_path, spoil, message):
    plan.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        apply(tiny_unet(), tmp_path)


@pytest.mark.parametrize("which", ["cache_plan", "plan"])
def test_another_model_and_another_length_are_refused(request, which):
    made, pipe = request.getfixturevalue(which), pipe_of(seed=1)
    expected = draw(pipe, STEPS)
    with pytest.raises(ValueError, match="calibrated for a model with fingerprint"):
        apply(pipe, made)
    assert torch.equal(draw(pipe, STEPS), expected)
    pipe = pipe_of()
    apply(pipe, made)
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match="for 8 steps, but the run has 9"):
        draw(pipe, STEPS + 1)
    assert inputs == []
    with pytest.raises(ValueError, match="for 8 steps, but the run has 9"):
        iec.sample(pipe.unet, noise(1, 3, 8, 8), STEPS + 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CacheQuantConfig(5, BRANCH, schedule="dps"), "half of the steps, but got 5 for 8 steps"),
        (CacheQuantConfig(9, BRANCH), "interval of 9 is longer"),
        (CacheQuantConfig(2, branch=9), "Branch 9 does not exist"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_sampled(config, message):
    pipe = pipe_of()
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match=message):
        calibrate(pipe, config, STEPS)
    assert inputs == []


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"interval": 0}, ValueError),
        ({"interval": 2.5}, TypeError),
        ({"branch": -1}, ValueError),
        ({"schedule": "power"}, ValueError),
        ({"weights": 1}, ValueError),
        ({"activations": 9}, ValueError),
        ({"storage": "int8"}, ValueError),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_they_are_made(setting, error):
    with pytest.raises(error, match=r"\.$"):
        CacheQuantConfig(**setting)


def test_the_default_branch_is_the_caches():
    made = calibrate(pipe_of(), replace(CACHE, branch=None), STEPS, **SETTINGS)
    unet = tiny_unet()
    assert branch_of(unet, made.cache) == branch_of(unet, DeepCacheConfig(2))
