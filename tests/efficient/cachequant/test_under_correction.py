"""CacheQuant under correction: the cache policies of a calibrated and quantized network."""

import pytest
import torch
from tiny_models import ddim_pipe, draw, tiny_unet

import iec
from iec.efficient import CacheQuantConfig, apply, calibrate

STEPS, INTERVAL = 8, 4


@pytest.fixture(scope="module")
def plan():
    config = CacheQuantConfig(INTERVAL, branch=1, weights=8)
    return calibrate(ddim_pipe(tiny_unet()), config, STEPS, samples=4, batch_size=4)


def cached_pipe(plan):
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, plan)
    return pipe


def corrected(plan, **settings):
    pipe = cached_pipe(plan)
    iec.enable(pipe, iec.IECConfig(0.0, 2, tolerance=0.0, **settings))
    return draw(pipe, STEPS, eta=1.0), iec.summary(pipe)


@pytest.mark.parametrize("cached_steps", [False, True])
@pytest.mark.parametrize("policy", ["bypass", "reuse"])
def test_relaxation_0_leaves_the_cached_run_alone_bit_for_bit(plan, policy, cached_steps):
    images, summary = corrected(plan, cache=policy, cached_steps=cached_steps)
    assert torch.equal(images, draw(cached_pipe(plan), STEPS, eta=1.0))
    full = {"bypass": 2 + 2 * STEPS, "reuse": 3 * 2}[policy] if cached_steps else 3 * 2
    assert summary.full_evaluations == full
    assert summary.corrected == (list(range(STEPS)) if cached_steps else [0, 4])


def test_a_refreshing_pass_changes_later_steps(plan):
    images, summary = corrected(plan, cache="refresh")
    assert not torch.equal(images, draw(cached_pipe(plan), STEPS, eta=1.0))
    assert (summary.full_evaluations, summary.cached_evaluations) == (6, 6)
