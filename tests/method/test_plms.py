"""PLMS against Lagrange polynomials and diffusers' PNDMScheduler, without correction and with."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler

import iec
from iec.method import IECConfig
from iec.method.plms import PLMSCall, combine, extend, plms_calls

from .denoisers import Recorded, smooth
from .reference import same_bits


def scheduler(num_steps):
    pndm = PNDMScheduler(
        skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    pndm.set_timesteps(num_steps)
    return pndm


def noise(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def reference_loop(x, num_steps, relaxations=(), selected=()):
    """Spec 1.5 by hand: dry steps on a copy of the scheduler, then the real step with the relaxed prediction."""
    pndm = scheduler(num_steps)
    for i, t in enumerate(pndm.timesteps):
        times = t.expand(len(x))
        e = smooth(x, times)
        for relaxation in relaxations if i in selected else ():
            state = deepcopy(pndm).step(e, t, x).prev_sample
            e = e + relaxation * (smooth(state, times) - e)
        x = pndm.step(e, t, x).prev_sample
    return x


def corrected(x, num_steps, config):
    return iec.sample(
        smooth,
        x,
        num_steps,
        spacing="uniform",
        sampler="plms",
        alphas_cumprod=scheduler(num_steps).alphas_cumprod,
        config=config,
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_weights_integrate_the_polynomial_through_the_latest_predictions(order):
    nodes = -np.arange(order)
    history = [torch.zeros(order) for _ in range(order)]
    for j in range(order):
        history[j][j] = 1.0  # the weight of prediction j comes out in component j
    weights = combine(history[0], history[:0:-1], call=0 if order == 1 else order)
    for j in range(order):
        others = np.delete(nodes, j)
        lagrange = np.poly1d(others, r=True) / np.prod(nodes[j] - others)
        integral = lagrange.integ()
        assert weights[j].item() == pytest.approx(integral(1) - integral(0), rel=1e-6)


def test_call_1_steps_with_the_mean_of_both_ends():
    assert combine(torch.tensor([3.0]), [torch.tensor([1.0])], call=1).item() == 2.0


def test_the_second_call_redoes_the_first_interval():
    assert plms_calls([30, 20, 10]) == [PLMSCall(30, 0), PLMSCall(20, 0), PLMSCall(20, 1), PLMSCall(10, 2)]
    assert plms_calls([30]) == [PLMSCall(30, 0)]


def test_the_history_leaves_out_call_1_and_keeps_three():
    history = []
    for call in range(7):
        history = extend(history, torch.tensor(call), call)
    assert [value.item() for value in history] == [4, 5, 6]
    assert [value.item() for value in extend([torch.tensor(0)], torch.tensor(1), 1)] == [0]


def test_the_network_is_called_at_the_timesteps_of_diffusers():
    recorded = Recorded(smooth)
    iec.sample(recorded, noise(1, 2), 10, spacing="uniform", sampler="plms", config=None)
    assert [call[2] for call in recorded.calls] == scheduler(10).timesteps.tolist()


@pytest.mark.parametrize("num_steps", [1, 2, 4, 10, 50])
def test_without_correction_it_equals_diffusers(num_steps):
    x = noise(3, 2, 4)
    torch.testing.assert_close(corrected(x, num_steps, None), reference_loop(x, num_steps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 10, 50])
@pytest.mark.parametrize(
    "relaxations", [(0.5,), (1.0, 0.5), (0.3, 0.3, 0.3)], ids=["paper", "released", "three iterations"]
)
@pytest.mark.parametrize("steps", ["first", "all", (1,), (0, 1, 2)], ids=str)
def test_with_correction_it_equals_the_dry_steps_of_the_specification(num_steps, relaxations, steps):
    x = noise(3, 2, 4)
    config = IECConfig(relaxation=relaxations, num_iterations=len(relaxations), tolerance=0.0, steps=steps)
    selected = {"first": {0}, "all": set(range(num_steps + 1))}.get(steps, steps)
    expected = reference_loop(x, num_steps, relaxations, selected)
    torch.testing.assert_close(corrected(x, num_steps, config), expected, rtol=1e-5, atol=1e-5)
    assert (expected - reference_loop(x, num_steps)).abs().max() > 1e-3


def test_each_network_call_is_a_step_of_the_summary():
    config = IECConfig(steps=[0, 10])
    _, summary = iec.sample(
        smooth, noise(2, 3), 10, spacing="uniform", sampler="plms", config=config, return_summary=True
    )
    assert summary.num_steps == len(summary.steps) == 11
    assert summary.corrected == [0, 10]
    assert summary.full_evaluations == 13


@pytest.mark.parametrize("config", [IECConfig(relaxation=0.0, num_iterations=2), IECConfig(num_iterations=0)])
def test_no_correction_keeps_every_bit(config):
    x = noise(2, 3)
    x[0, 0] = -0.0
    assert same_bits(corrected(x, 10, config), corrected(x, 10, None))


def test_a_sample_that_falls_back_keeps_its_uncorrected_prediction_in_the_history():
    x = noise(2, 3, dtype=torch.float64)

    def spoilt(x, t):
        eps = smooth(x, t)
        if iec.method.current_clock().pass_index:
            eps[1] = torch.nan
        return eps

    options = {"num_steps": 10, "spacing": "uniform", "sampler": "plms"}
    result = iec.sample(spoilt, x, **options, config=IECConfig())
    assert same_bits(result[1], iec.sample(smooth, x, **options, config=None)[1])
    torch.testing.assert_close(result[0], iec.sample(smooth, x, **options, config=IECConfig())[0], rtol=0, atol=1e-12)


def test_a_frozen_sample_does_not_depend_on_its_batch():
    x = noise(6, 3, dtype=torch.float64)
    config = IECConfig(num_iterations=3, tolerance=3e-3)
    options = {"num_steps": 20, "spacing": "uniform", "sampler": "plms", "config": config}
    together, summary = iec.sample(smooth, x, **options, return_summary=True)
    frozen = [torch.stack(record.residuals).isnan() for record in summary.steps]
    assert any(step.any() and not step.all(1).any() for step in frozen)  # some samples froze before others
    for row in range(6):
        alone = iec.sample(smooth, x[row : row + 1], **options)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-9)


def test_it_is_deterministic_only():
    with pytest.raises(ValueError, match="eta must be 0"):
        iec.sample(smooth, noise(1, 2), 10, sampler="plms", eta=0.5)
