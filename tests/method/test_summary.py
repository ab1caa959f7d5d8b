"""What a run says about itself."""

import json

import pytest
import torch

import iec
from iec.method import IECConfig, current_clock

from .denoisers import Cached, smooth


def noise(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def summarize(denoiser=smooth, x=None, num_steps=6, **options):
    _, summary = iec.sample(denoiser, noise(3, 4) if x is None else x, num_steps, return_summary=True, **options)
    return summary


def test_without_correction_nothing_is_selected():
    for config in (None, IECConfig(num_iterations=0)):
        summary = summarize(config=config)
        assert (summary.selected, summary.corrected, summary.skipped) == ([], [], [])
        assert (summary.full_evaluations, summary.cached_evaluations) == (6, 0)
        assert all(record.residuals == () and record.passes == 0 for record in summary.steps)


def test_it_counts_steps_images_and_evaluations():
    summary = summarize(config=IECConfig(num_iterations=2, tolerance=0.0, steps=[1, 4]))
    assert (summary.num_steps, summary.num_images) == (6, 3)
    assert summary.selected == summary.corrected == [1, 4]
    assert [record.full for record in summary.steps] == [1, 3, 1, 1, 3, 1]
    assert [record.passes for record in summary.steps] == [0, 2, 0, 0, 2, 0]
    assert summary.full_evaluations == 10


def test_the_timesteps_are_those_of_the_spacing():
    assert [record.timestep for record in summarize(num_steps=5, spacing="linspace").steps] == [999, 749, 500, 250, 0]


def test_residuals_are_the_relative_sizes_of_the_updates():
    states = []

    def denoiser(x, t):
        states.append(x.clone())
        return smooth(x, t)

    record = summarize(denoiser, num_steps=2, config=IECConfig(num_iterations=2, tolerance=0.0, steps="first")).steps[0]
    x0, x1, x2 = states[1:4]  # the inputs of pass 1, of pass 2, and of the next step
    expected = [(after - before).norm(dim=1) / before.norm(dim=1) for before, after in ((x0, x1), (x1, x2))]
    torch.testing.assert_close(torch.stack(record.residuals), torch.stack(expected), rtol=1e-6, atol=1e-12)


def test_a_dropped_correction_is_reported_with_its_step_and_samples():
    def denoiser(x, t):
        clock = current_clock()
        eps = smooth(x, t)
        if clock.pass_index == 1 and clock.step == 2:
            eps[[0, 2]] = torch.nan
        return eps

    summary = summarize(denoiser)
    assert [record.samples_fell_back for record in summary.steps] == [[], [], [0, 2], [], [], []]
    (warning,) = summary.all_warnings
    assert "At step 2, the correction of sample 0, 2 was not finite" in warning
    assert f"! {warning}" in str(summary)
    assert summary.to_dict()["warnings"] == [warning]
    assert summary.to_dict()["steps"][2]["residuals"][0][0] is None


def test_its_written_form_is_plain_json_without_nan():
    summary = summarize(Cached(3), config=IECConfig(num_iterations=2, tolerance=0.05))
    written = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert written["num_steps"] == 6
    assert written["corrected"] == [0, 3]
    assert written["skipped"] == [1, 2, 4, 5]
    assert written["full_evaluations"] == summary.full_evaluations
    assert written["cached_evaluations"] == 4
    assert [step["step"] for step in written["steps"]] == list(range(6))
    assert [step["full_evaluations"] for step in written["steps"]] == [record.full for record in summary.steps]


def test_it_prints_one_row_per_step():
    lines = str(summarize(Cached(3), config=IECConfig(tolerance=0.0, steps=[0, 1, 3]))).splitlines()
    assert "4 full and 4 cached evaluations per image" in lines[0]
    assert "2 of 3 selected steps corrected" in lines[0]
    rows = [line.split() for line in lines[2:]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row[1] for row in rows] == ["800", "512", "288", "128", "32", "0"]
    assert [row[2] for row in rows] == ["yes", "cached", "no", "yes", "no", "no"]


def test_the_seconds_of_the_run_are_those_of_its_steps():
    summary = summarize()
    assert all(record.seconds > 0 for record in summary.steps)
    assert summary.seconds == pytest.approx(sum(record.seconds for record in summary.steps))
