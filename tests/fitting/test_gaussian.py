"""Gaussian data, of which the denoiser and the solution of the ODE are known in closed form."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

import iec
from iec.fitting.fine_scheduler import fine_scheduler

from .models import ddim, draw, flow_pipe, gaussian_pipe, quad, size


def first_state(pipe):
    """The noise of new trajectories, and what their first states hold of the clean image and of noise."""
    noise = draw(pipe, seed=7, begin=10)
    return noise, pipe.unet.levels(float(pipe.scheduler.timesteps[0]))


def errors(pipe, plan):
    """Of new trajectories: of the plain, of Adams' and of the calibrated final state, against the solution."""
    noise, start = first_state(pipe)
    expected = pipe.unet.solution(noise, *start)
    found = [size(draw(pipe, seed=7) - expected)]
    for correction in (iec.AdamsConfig(), plan):
        with iec.enabled(pipe, correction):
            found.append(size(draw(pipe, seed=7) - expected))
    return found


CASES = {
    "quad": (quad, gaussian_pipe, 10, 4),
    "DDIM": (ddim, gaussian_pipe, 5, 1.5),
    "flow matching": (FlowMatchEulerDiscreteScheduler, flow_pipe, 10, 3),
    "flow matching, shifted": (lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), flow_pipe, 5, 1.5),
}


@pytest.mark.parametrize("name", CASES)
def test_the_final_error_is_a_tenth_or_less_of_the_first_order_one(name):
    """A fifth on grids whose first steps are very long; the pixels' variances span two orders of magnitude."""
    make, pipe_of, calibrated_gain, adams_gain = CASES[name]
    pipe = pipe_of(make())
    plan = iec.calibrate_correction(pipe, 10, samples=16)
    plain, adams, calibrated = errors(pipe, plan)
    assert calibrated < plain / calibrated_gain
    assert adams < plain / adams_gain
    assert plan.report.corrected < plan.report.plain / calibrated_gain
    assert plan.report.solver_share == 1.0


def test_on_a_fine_even_grid_the_fitted_coefficient_is_adams_half():
    """Flow matching without shift steps evenly in sigma."""
    distances = []
    for steps in (20, 80):
        pipe = flow_pipe(FlowMatchEulerDiscreteScheduler())
        plan = iec.calibrate_correction(pipe, steps, samples=8, history=1, bands=1, bias=False, substeps=4)
        middle = plan.fitted.coefficients[steps // 4 : 3 * steps // 4, 0, 0]
        distances.append((middle - 0.5).abs().mean().item())
    assert distances[1] < 0.03
    assert distances[1] < distances[0] / 2


@pytest.mark.parametrize(
    ("make", "pipe_of"),
    [
        (FlowMatchEulerDiscreteScheduler, flow_pipe),
        (lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), flow_pipe),
        (ddim, gaussian_pipe),
    ],
)
def test_the_reference_is_of_second_order(make, pipe_of):
    pipe, found = pipe_of(make()), []
    noise, start = first_state(pipe)
    for substeps in (6, 12, 24):
        pipe.scheduler = fine_scheduler(make(), substeps)
        found.append(size(draw(pipe, seed=7) - pipe.unet.solution(noise, *start)))
    assert found[1] < found[0] / 3
    assert found[2] < found[1] / 3
