"""`enable`, `disable`, `enabled` and `summary`, as a user meets them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from tiny_models import ddim_pipe, draw, recorded_inputs, tiny_net

import iec


def evaluations(pipe, steps=4):
    with recorded_inputs(pipe.unet) as inputs:
        draw(pipe, steps)
    return len(inputs)


def test_the_default_is_the_papers_setting():
    pipe = ddim_pipe()
    iec.enable(pipe)
    images = draw(pipe)
    iec.enable(pipe, iec.IECConfig(relaxation=0.5, num_iterations=1, steps="all"))
    assert torch.equal(draw(pipe), images)
    assert evaluations(pipe) == 8


def test_disable_is_bit_identical_and_leaves_the_class():
    pipe = ddim_pipe()
    expected = draw(pipe)
    iec.enable(pipe)
    assert not torch.equal(draw(pipe), expected)
    iec.disable(pipe)
    assert type(pipe) is DDIMPipeline
    assert torch.equal(draw(pipe), expected)
    assert evaluations(pipe) == 4
    iec.disable(pipe)  # again: nothing happens
    assert type(pipe) is DDIMPipeline


def test_enable_twice_replaces():
    pipe = ddim_pipe()
    iec.enable(pipe, iec.IECConfig(num_iterations=3, tolerance=0.0))
    iec.enable(pipe, iec.IECConfig(relaxation=0.3))
    images = draw(pipe)
    assert evaluations(pipe) == 8
    once = ddim_pipe()
    iec.enable(once, iec.IECConfig(relaxation=0.3))
    assert torch.equal(draw(once), images)
    iec.disable(pipe)
    assert evaluations(pipe) == 4
    assert type(pipe) is DDIMPipeline


def test_enabled_ends_with_its_block():
    pipe = ddim_pipe()
    with iec.enabled(pipe) as inside:
        assert inside is pipe
        assert evaluations(pipe) == 8
    assert evaluations(pipe) == 4
    assert type(pipe) is DDIMPipeline


def test_enabled_brings_an_earlier_setting_back():
    pipe = ddim_pipe()
    iec.enable(pipe, iec.IECConfig(steps="first"))
    draw(pipe)
    before = iec.summary(pipe)
    with iec.enabled(pipe, iec.IECConfig(num_iterations=2, tolerance=0.0)):
        assert evaluations(pipe) == 12
    assert iec.summary(pipe) is before
    assert evaluations(pipe) == 5


def test_enabled_ends_after_an_exception():
    pipe = ddim_pipe()
    with pytest.raises(ZeroDivisionError), iec.enabled(pipe):
        raise ZeroDivisionError
    assert type(pipe) is DDIMPipeline


@pytest.mark.parametrize("config", [0.5, {"relaxation": 0.5}])
def test_a_config_that_is_none_is_refused(config):
    pipe = ddim_pipe()
    with pytest.raises(TypeError, match="IECConfig"):
        iec.enable(pipe, config)
    assert type(pipe) is DDIMPipeline


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_without_a_plan_is_refused(kind):
    pipe = ddim_pipe()
    with pytest.raises(ValueError, match="'paper' holds no plan"):
        iec.enable(pipe, kind("paper"))
    assert type(pipe) is DDIMPipeline


# The summary


def test_there_is_no_summary_before_enabling_or_sampling():
    pipe = ddim_pipe()
    with pytest.raises(RuntimeError, match="not enabled"):
        iec.summary(pipe)
    iec.enable(pipe)
    with pytest.raises(RuntimeError, match="Nothing was sampled"):
        iec.summary(pipe)
    draw(pipe)
    assert iec.summary(pipe).num_images == 2
    iec.enable(pipe)
    with pytest.raises(RuntimeError, match="Nothing was sampled"):
        iec.summary(pipe)
    iec.disable(pipe)
    with pytest.raises(RuntimeError, match="not enabled"):
        iec.summary(pipe)


def test_the_summary_says_what_was_done():
    pipe = ddim_pipe()
    iec.enable(pipe, iec.IECConfig(num_iterations=2, steps=[0, 2], tolerance=0.0))
    draw(pipe, 4, batch=3)
    summary = iec.summary(pipe)
    assert (summary.num_steps, summary.num_images) == (4, 3)
    assert summary.selected == summary.corrected == [0, 2]
    assert summary.skipped == []
    assert (summary.full_evaluations, summary.cached_evaluations) == (8, 0)
    assert [record.timestep for record in summary.steps] == pipe.scheduler.timesteps.tolist()
    assert [record.full for record in summary.steps] == [3, 1, 3, 1]
    assert [record.passes for record in summary.steps] == [2, 0, 2, 0]
    assert [tuple(sizes.shape) for sizes in summary.steps[0].residuals] == [(3,), (3,)]
    assert all(record.seconds > 0 for record in summary.steps)
    assert summary.all_warnings == []
    lines = str(summary).splitlines()
    assert "4 steps, 3 images: 8 full and 0 cached evaluations" in lines[0]
    assert "2 of 2 selected steps corrected" in lines[0]
    assert len(lines) == 6
    written = json.loads(json.dumps(summary.to_dict()))
    assert written["steps"][2]["corrected"] is True


def test_the_residuals_are_the_relative_sizes_of_the_updates():
    net = tiny_net()
    pipe = ddim_pipe(net)
    iec.enable(pipe, iec.IECConfig(relaxation=0.5, num_iterations=2, tolerance=0.0))
    with recorded_inputs(net) as inputs:
        draw(pipe, 2)
    x_0, x_1, x_2 = inputs[1], inputs[2], inputs[3]  # x_2 is the next step's x_t
    residuals = iec.summary(pipe).steps[0].residuals
    for before, after, found in ((x_0, x_1, residuals[0]), (x_1, x_2, residuals[1])):
        expected = (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_the_summary_is_that_of_the_latest_run():
    pipe = ddim_pipe()
    iec.enable(pipe)
    draw(pipe, 4)
    first = iec.summary(pipe)
    draw(pipe, 3)
    assert len(first.steps) == 4
    assert len(iec.summary(pipe).steps) == 3


@pytest.mark.parametrize("steps", [[4], [0, 9]])
def test_indices_beyond_the_run_are_refused_before_any_evaluation(steps):
    pipe = ddim_pipe()
    iec.enable(pipe, iec.IECConfig(steps=steps))
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match=f"Step {steps[-1]} .* 4 steps"):
        draw(pipe, 4)
    assert inputs == []
    assert len(draw(pipe, 10)) == 2  # valid for a longer run, and nothing is left locked


def test_indices_beyond_the_run_do_not_matter_without_iterations():
    pipe = ddim_pipe()
    expected = draw(pipe)
    with iec.enabled(pipe, iec.IECConfig(num_iterations=0, steps=[99])):
        assert torch.equal(draw(pipe), expected)


def test_a_callable_selector_is_asked_once_per_step():
    pipe, asked = ddim_pipe(), []

    def every_other(step, num_steps):
        asked.append((step, num_steps))
        return step % 2 == 1

    iec.enable(pipe, iec.IECConfig(steps=every_other))
    draw(pipe, 5)
    assert asked == [(step, 5) for step in range(5)]
    assert iec.summary(pipe).corrected == [1, 3]


def test_a_run_in_inference_mode_equals_one_without():
    pipe = ddim_pipe()
    iec.enable(pipe)
    expected = draw(pipe, eta=1.0)
    with torch.inference_mode():
        assert torch.equal(draw(pipe, eta=1.0), expected)
