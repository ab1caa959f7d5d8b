"""The forecast of the stored feature: the gains that calibration finds, what runs do with them, and their plan."""

import json
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_models import ddim_pipe, draw, noise, on_evaluation, recorded_inputs, tiny_unet

import iec
from iec.efficient import DeepCacheConfig, DeepCachePlan, apply, calibrate, load_plan, remove
from iec.efficient.caching.forecast import Forecast
from iec.efficient.caching.gains import RIDGE, GainFit
from iec.efficient.checkpoint import Checkpoint
from iec.method.clock import Clock, current_clock
from iec.method.noise import image_generator
from iec.storage.fingerprint import fingerprint

from . import stable_diffusion
from .test_cached_runs import BRANCH, HandCached, close, paper_step

STEPS, INTERVAL = 10, 3
FULL_STEPS = (0, 3, 6, 9)
FORECAST = DeepCacheConfig(INTERVAL, BRANCH, forecast=True)
SETTINGS = {"samples": 5, "batch_size": 2}
NONE = iec.IECConfig(num_iterations=0)


def pipe_of(seed=0, dtype=torch.float32):
    return ddim_pipe(tiny_unet(seed).to(dtype))


@pytest.fixture(scope="module")
def plan():
    return calibrate(pipe_of(), FORECAST, STEPS, **SETTINGS)


def planted(full_steps=FULL_STEPS, model=None):
    """A plan whose gains are so different from step to step that a wrong index shows."""
    gains = torch.zeros(STEPS, 2, dtype=torch.float64)
    for step in range(STEPS):
        past = sum(full <= step for full in full_steps) - 1
        if step not in full_steps and past > 0:
            gains[step] = torch.tensor([4 + 1.1 * step, 0.7 * step - 3 if past > 1 else 0.0])
    model = fingerprint(tiny_unet() if model is None else model)
    return DeepCachePlan(FORECAST, STEPS, model, full_steps, gains=gains)


# The gains


def gains_of(feature, interval=INTERVAL, num_steps=STEPS, dtype=torch.float64):
    """Those found where the deep feature of every evaluation is `feature(step)`, whatever the input."""
    pipe = pipe_of(dtype=dtype)

    def hook(module, args, output):
        return feature(current_clock().step).to(output.dtype).expand_as(output)

    handle = pipe.unet.up_blocks[0].register_forward_hook(hook)  # what re-enters at branch 1
    config = replace(FORECAST, interval=interval)
    found = calibrate(pipe, config, num_steps, **SETTINGS).gains
    handle.remove()
    return found


def fields(seed):
    return noise(1, 16, 8, 8, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_feature_that_is_linear_in_the_step_is_extrapolated(dtype):
    found = gains_of(lambda step: fields(1) + step * fields(2), 5, 20, dtype)
    expected = torch.zeros(20, 2, dtype=torch.float64)
    for step in range(5, 20):
        expected[step, 0] = (step % 5) / 5 / (1 + RIDGE)
    # Differences of second order are rounding alone and get no gain.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9 if dtype == torch.float64 else 1e-5)
    assert not found[::5].any()
    assert not found[:5].any()


def test_a_feature_that_is_quadratic_in_the_step_is_extrapolated():
    found = gains_of(lambda step: fields(1) + step * fields(2) + 0.01 * step**2 * fields(3), 5, 20)
    for step in range(11, 15):
        u = (step - 10) / 5  # Newton's backward differences: F_s + u D + u (u + 1) / 2 D2
        torch.testing.assert_close(
            found[step], torch.tensor([u, u * (u + 1) / 2], dtype=torch.float64), rtol=0.02, atol=0
        )
    assert found[6:10, 0].abs().min() > 0
    assert not found[6:10, 1].any()  # the second block has no second difference


def test_a_feature_that_never_changes_has_no_gains():
    assert not gains_of(lambda step: fields(1)).any()


def test_the_fit_by_hand():
    fit = GainFit()
    fit.add([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])], torch.tensor([[3.0, 4.0]]))
    fit.add([torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])], torch.tensor([[1.0, 2.0]]))
    # First difference: squares 1 + 1, products 3 + 2; second: squares 4 + 4, products 8 + 2; they are orthogonal.
    expected = [5 / (2 * (1 + RIDGE)), 10 / (8 * (1 + RIDGE))]
    assert fit.solve().tolist() == pytest.approx(expected, rel=1e-12)
    assert GainFit().solve().tolist() == [0, 0]


class Reference:
    """The closed loop by definition: one batch of all trajectories, by hooks, lists and solve alone."""

    def __init__(self, samples, num_steps=STEPS, full_steps=FULL_STEPS):
        pipe = pipe_of(dtype=torch.float64)
        model, scheduler = HandCached(pipe.unet), pipe.scheduler
        scheduler.set_timesteps(num_steps)
        generators = [image_generator(2000, i) for i in range(samples)]
        x = torch.cat([torch.randn(1, 3, 8, 8, generator=g, dtype=torch.float64) for g in generators])
        self.gains = torch.zeros(num_steps, 2, dtype=torch.float64)
        history = []
        for i, t in enumerate(scheduler.timesteps):
            if i in full_steps:
                e, feature = model.full(x, t)
                history.append(feature)
            else:
                used = history[-1]
                first = [new - old for old, new in pairwise(history)][::-1]
                terms = [*first[:1], *([first[0] - first[1]] if len(first) > 1 else [])]
                if terms:
                    X = torch.stack([term.flatten() for term in terms], 1)
                    y = (model.full(x, t)[1] - used).flatten()
                    gram = X.T @ X
                    g = torch.linalg.solve(gram + 1e-3 * torch.diag(torch.diag(gram)), X.T @ y)
                    self.gains[i, : len(g)] = g
                    used = used + sum(gain * term for gain, term in zip(g, terms, strict=True))
                e = model.cached(x, t, used)
            x = scheduler.step(e, t, x).prev_sample


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_the_gains_are_those_of_the_exact_closed_loop_in_any_batches(batch_size):
    found = calibrate(pipe_of(dtype=torch.float64), FORECAST, STEPS, samples=5, batch_size=batch_size)
    torch.testing.assert_close(found.gains, Reference(5).gains, rtol=0, atol=1e-9)
    assert found.full_steps == FULL_STEPS
    assert found.gains[4:6, 0].abs().min() > 1e-2
    assert found.gains[7:9, 1].abs().min() > 1e-3


def test_every_cached_step_after_the_first_block_costs_one_full_evaluation_more():
    pipe, evaluations = pipe_of(), []
    with on_evaluation(pipe.unet, evaluations.append):
        calibrate(pipe, FORECAST, STEPS, **SETTINGS)
    assert len(evaluations) == 3 * (STEPS + 4)  # batches; of the cached steps 4, 5, 7, 8


def test_progress_tells_the_share_of_the_steps_and_the_pipeline_is_left_alone():
    pipe, told = pipe_of(), []
    expected = draw(pipe)
    calibrate(pipe, FORECAST, STEPS, **SETTINGS, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (3, 5), (4, 5), (4, 5), (5, 5)]
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    assert torch.equal(draw(pipe), expected)


def test_searched_steps_are_forecast_too():
    config = replace(FORECAST, schedule="dps")
    found = calibrate(pipe_of(), config, STEPS, **SETTINGS)
    assert found.full_steps == calibrate(pipe_of(), replace(config, forecast=False), STEPS, **SETTINGS).full_steps
    second, *_ = (i for i in range(found.full_steps[1], STEPS) if i not in found.full_steps)
    assert found.gains[second, 0]
    assert not found.gains[: second - 1].any()


def test_plms_makes_a_call_more():
    pipe = stable_diffusion.pipe_of(stable_diffusion.plms())
    config = replace(FORECAST, interval=3, schedule="plms")
    found = calibrate(pipe, config, 8, **SETTINGS, inputs={"prompt": stable_diffusion.PROMPTS, "guidance_scale": 3.0})
    assert found.num_steps == len(found.gains) == 9
    assert found.full_steps == (0, 4, 7)
    assert found.gains[[5, 6, 8], 0].all()
    plain = stable_diffusion.draw(pipe, 8)
    apply(pipe, found)
    assert not torch.equal(stable_diffusion.draw(pipe, 8), plain)


# Runs


def forecast_loop(x, timesteps, step, plan, relaxations=(), policy="refresh", cached_steps=False):
    """x_0, with the history in a list, the newest feature last."""
    model, history, base = HandCached(tiny_unet().double()), [], None

    def change(i):
        first, second = plan.gains[i].tolist()
        moved = 0
        if first:
            moved = first * (history[-1] - history[-2])
        if second:
            moved = moved + second * (history[-1] - 2 * history[-2] + history[-3])
        return moved

    for i, t in enumerate(timesteps):
        full = i in plan.full_steps
        if full:
            e, base = model.full(x, t)
            history.append(base)
        else:
            e = model.cached(x, t, base + change(i))
        state = step(i, x, e)
        for relaxation in relaxations if full or cached_steps else ():
            if policy == "reuse" and not full:
                e = model.cached(state, t, base + change(i))
            else:
                e, feature = model.full(state, t)
                if policy == "refresh" and full:
                    base = history[-1] = feature
                elif policy == "refresh":
                    base = feature - change(i)
            state = state + relaxation * (step(i, x, e) - state)
        x = state
    return x


CORRECTIONS = product(["refresh", "bypass", "reuse"], [False, True], [(0.5,), (1.0, 0.5)])


@pytest.mark.parametrize(("policy", "cached_steps", "relaxations"), [("refresh", False, ()), *CORRECTIONS], ids=str)
def test_a_forecast_run_equals_the_loop(policy, cached_steps, relaxations):
    (timesteps, step), unet = paper_step(STEPS), tiny_unet().double()
    x = noise(2, 3, 8, 8, dtype=torch.float64)
    config = iec.IECConfig(relaxations or 0.5, len(relaxations), cached_steps=cached_steps, cache=policy, tolerance=0.0)
    plan = planted(model=unet)
    expected = forecast_loop(x, timesteps, step, plan, relaxations, policy, cached_steps)
    apply(unet, plan)
    close(iec.sample(unet, x, STEPS, config=config), expected, 1e-9)
    apply(unet, DeepCacheConfig(INTERVAL, BRANCH))
    unforecast = iec.sample(unet, x, STEPS, config=config)
    assert (unforecast - expected).abs().max() > 1e-6 * expected.abs().max()


def test_in_refresh_mode_each_sample_keeps_the_features_of_its_own_updates():
    unet, x = tiny_unet(), noise(3, 3, 8, 8)
    apply(unet, planted())
    loose = iec.IECConfig(0.5, 3, tolerance=0.0, cached_steps=True)
    _, summary = iec.sample(unet, x, STEPS, config=loose, return_summary=True)
    sizes = torch.stack([record.residuals[0] for record in summary.steps]).flatten()
    config = replace(loose, tolerance=sizes.median().item())
    together, summary = iec.sample(unet, x, STEPS, config=config, return_summary=True)
    alone = torch.cat([iec.sample(unet, row, STEPS, config=config) for row in x.split(1)])
    close(together, alone)
    second = [record.residuals[1] for record in summary.steps if len(record.residuals) > 1]
    assert any(0 < int(sizes.isfinite().sum()) < 3 for sizes in second)  # some had converged, others had not


def test_a_bypassing_correction_of_lambda_0_changes_no_bit(plan):
    images = []
    for config in (None, iec.IECConfig(0.0, 2, cache="bypass", cached_steps=True, tolerance=0.0)):
        pipe = pipe_of()
        apply(pipe, plan)
        if config is not None:
            iec.enable(pipe, config)
        images.append(draw(pipe, STEPS))
    assert iec.summary(pipe).full_evaluations == 4 + 2 * STEPS
    assert torch.equal(*images)


@pytest.mark.parametrize("config", [NONE, iec.IECConfig(0.5, 2, tolerance=0.0)])
def test_with_interval_1_it_is_the_plain_model(config):
    found = calibrate(pipe_of(), replace(FORECAST, interval=1), STEPS, **SETTINGS)
    assert not found.gains.any()
    states = []
    for technique in (found, DeepCacheConfig(1, BRANCH)):
        apply(unet := tiny_unet(), technique)
        states.append(iec.sample(unet, noise(2, 3, 8, 8), STEPS, config=config))
    assert torch.equal(*states)
    close(states[0], iec.sample(tiny_unet(), noise(2, 3, 8, 8), STEPS, config=config))


def test_the_first_block_is_what_it_is_without_a_forecast():
    """Up to step 5: no cached step of the second block has been made at step 3."""
    seen = {}
    for name, technique in (("forecast", planted()), ("plain", DeepCacheConfig(INTERVAL, BRANCH))):
        apply(unet := tiny_unet(), technique)
        with recorded_inputs(unet) as inputs:
            iec.sample(unet, noise(2, 3, 8, 8), STEPS, config=NONE)
        seen[name] = inputs
    equal = [torch.equal(a, b) for a, b in zip(seen["forecast"], seen["plain"], strict=True)]
    assert equal == [True] * 5 + [False] * 5


def test_without_a_forecast_one_feature_is_kept_and_with_it_three():
    for technique, most in ((DeepCacheConfig(2, BRANCH), 1), (planted(full_steps=(0, 2, 4, 6, 8)), 4)):
        apply(unet := tiny_unet(), technique)
        counts, features = [], []
        with Clock(STEPS) as clock:
            for step in range(STEPS):
                unet(noise(2, 3, 8, 8, seed=step), step)
                counts.append(len(clock.storage))
                features.append(len({tensor.data_ptr() for tensor in clock.storage.values()}))
                assert all(isinstance(tensor, torch.Tensor) for tensor in clock.storage.values())
                clock.advance()
        assert max(counts) == most
        assert max(features) == min(most, 3)


def test_a_cached_step_that_was_computed_in_full_is_forecast_as_what_it_was():
    gains = torch.tensor([[0, 0], [0, 0], [0, 0], [0.5, 0], [2.0, 0]], dtype=torch.float64)
    forecast, storage = Forecast([0, 2], gains), {}
    for step, value in ((0, 1.0), (2, 4.0)):
        forecast.keep(storage, "net", step, torch.tensor([value]))
    assert forecast.at(storage, "net", 3).item() == 4 + 0.5 * 3
    forecast.keep(storage, "net", 3, torch.tensor([10.0]))
    assert forecast.at(storage, "net", 3).item() == 10
    assert forecast.at(storage, "net", 4).item() == 10 + (2 - 0.5) * 3


# Plans


def test_a_plan_is_the_same_after_a_round_trip(plan, tmp_path):
    plan.save_pretrained(tmp_path / "plan")
    found = load_plan(tmp_path / "plan")
    assert torch.equal(found.gains, plan.gains)
    assert replace(found, gains=None) == replace(plan, gains=None)
    images = []
    for source in (plan, tmp_path / "plan"):
        pipe = pipe_of()
        apply(pipe, source)
        images.append(draw(pipe, STEPS))
    assert torch.equal(*images)
    remove(pipe)
    assert torch.equal(draw(pipe, STEPS), draw(pipe_of(), STEPS))


def test_a_plan_from_before_there_was_a_forecast_has_none(tmp_path):
    calibrate(pipe_of(), DeepCacheConfig(INTERVAL, BRANCH, "dps"), STEPS, **SETTINGS).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "plan.json").read_text())
    del settings["config"]["forecast"]
    (tmp_path / "plan.json").write_text(json.dumps(settings))
    found = load_plan(tmp_path)
    assert found.gains is None
    assert not found.config.forecast


@pytest.mark.parametrize(
    ("gains", "message"), [(torch.zeros(9, 2, dtype=torch.float64), "corrupt"), (None, "incomplete: 'gains'")]
)
def test_a_plan_without_its_gains_is_refused(plan, tmp_path, gains, message):
    replace(plan, gains=gains).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        apply(tiny_unet(), tmp_path)


# Interruptions


def saved(plan, folder):
    plan.save_pretrained(folder)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("after", range(1, 6))
@pytest.mark.parametrize("schedule", ["uniform", "dps"])
def test_an_interrupted_calibration_goes_on_to_the_same_plan_byte_for_byte(tmp_path, monkeypatch, schedule, after):
    monkeypatch.setattr(Checkpoint, "due", lambda checkpoint: True)
    config, told, checkpoint = replace(FORECAST, schedule=schedule), [], tmp_path / "checkpoint"
    expected = saved(calibrate(pipe_of(), config, STEPS, **SETTINGS), tmp_path / "whole")

    def stop(done, total):
        told.append((done, total))
        if len(told) == after:
            raise KeyboardInterrupt

    pipe = pipe_of()
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, config, STEPS, **SETTINGS, on_progress=stop, checkpoint=checkpoint)
    assert type(pipe) is DDIMPipeline
    assert type(pipe.unet) is UNet2DModel
    pipe, evaluations = pipe_of(), []
    with on_evaluation(pipe.unet, evaluations.append):
        plan = calibrate(pipe, config, STEPS, **SETTINGS, checkpoint=checkpoint)
    assert saved(plan, tmp_path / "resumed") == expected
    assert not checkpoint.exists()
    if schedule == "uniform":  # gains that were found are not looked for again
        assert len(evaluations) == (3 * (STEPS + 4 - after) if after < 5 else 0)


# What is refused


@pytest.mark.parametrize("target", [pipe_of, tiny_unet])
def test_gains_that_are_still_to_be_found_are_not_applied(target):
    with pytest.raises(ValueError, match="gains of a forecast are found by calibration: apply the plan that iec"):
        apply(target(), FORECAST)
    with pytest.raises(ValueError, match="full steps of the schedule dps are found"):
        apply(target(), replace(FORECAST, schedule="dps"))


def test_another_length_is_refused_before_anything_is_evaluated(plan):
    pipe = pipe_of()
    apply(pipe, plan)
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match="for 10 steps, but the run has 9"):
        draw(pipe, STEPS - 1)
    assert inputs == []
    with pytest.raises(ValueError, match="for 10 steps, but the run has 9"):
        iec.sample(pipe.unet, noise(2, 3, 8, 8), STEPS - 1)
    with pytest.raises(ValueError, match="fingerprint"):
        apply(pipe_of(seed=1), plan)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(FORECAST, interval=11), "interval of 11 is longer than the run of 10 steps"),
        (replace(FORECAST, branch=9), "Branch 9 does not exist"),
        (replace(FORECAST, interval=6, schedule="dps"), "half of the steps"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_sampled(config, message):
    pipe = pipe_of()
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(ValueError, match=message):
        calibrate(pipe, config, STEPS)
    assert inputs == []


def test_a_forecast_is_on_or_off():
    with pytest.raises(TypeError, match="forecast must be True or False, but is 1"):
        DeepCacheConfig(forecast=1)


def test_a_feature_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        gains_of(lambda step: fields(1) * (float("inf") if step == 4 else step))
