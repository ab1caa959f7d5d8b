"""CacheQuant on a forecast feature: the gains first, DEC on what they forecast."""

from dataclasses import replace

import pytest
import torch
from tiny_models import draw, on_evaluation, tiny_unet

from iec.efficient import CacheQuantConfig, DeepCacheConfig, DeepCachePlan, apply, calibrate, load_plan
from iec.efficient.cachequant.held import HeldFeatures
from iec.efficient.cachequant.reentry import reentry_layers
from iec.efficient.caching.forecast import Forecast
from iec.efficient.checkpoint import Checkpoint
from iec.storage.fingerprint import fingerprint

from .small import BRANCH, SETTINGS, pipe_of
from .test_cachequant import lstsq
from .test_cachequant import trajectory_features as features_of_full_runs

STEPS, INTERVAL = 8, 2  # those of the features
FULL_STEPS = (0, 2, 4, 6)
CACHE = CacheQuantConfig(INTERVAL, BRANCH, weights=None, forecast=True)
QUANTIZED = replace(CACHE, weights=8)


@pytest.fixture(scope="module")
def plan():
    return calibrate(pipe_of(), QUANTIZED, STEPS, **SETTINGS)


def forecast_by_hand(features, gains, step):
    stored, older, oldest = (features[max(0, step // 2 * 2 - back)] for back in (0, 2, 4))
    first, second = gains[step].tolist()
    if step < 4:
        oldest = 2 * older - stored  # no second difference yet
    return stored + first * (stored - older) + second * (stored - 2 * older + oldest)


def test_the_gains_are_deepcaches_and_dec_is_fitted_on_what_they_forecast(plan):
    forecast = calibrate(pipe_of(), DeepCacheConfig(INTERVAL, BRANCH, forecast=True), STEPS, **SETTINGS)
    assert torch.equal(plan.gains, forecast.gains)
    assert plan.gains[[3, 5, 7], 0].all()
    features, (scale, shift) = features_of_full_runs(pipe_of()), plan.feature
    for step in (1, 3, 5, 7):
        used = forecast_by_hand(features, plan.gains, step)
        for channel in range(used.shape[1]):
            expected = lstsq(used[:, channel], features[step][:, channel])
            got = scale[step, channel].item(), shift[step, channel].item()
            assert got == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_held_features_are_those_of_the_batch_at_hand():
    gains = torch.zeros(STEPS, 2, dtype=torch.float64)
    gains[3], gains[5] = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 2.0])
    held = HeldFeatures(FULL_STEPS, Forecast(FULL_STEPS, gains))
    for batch in (3, 2):
        values = [torch.full((batch, 1), float(batch * step**2)) for step in range(STEPS)]
        used = [held.used(step, value) for step, value in enumerate(values)]
        assert [value[0, 0].item() / batch for value in used] == [0, 0, 4, 4 + 2, 16, 16 + 12 + 2 * 8, 36, 36]
        assert all(len(value) == batch for value in used)
    with pytest.raises(ValueError, match="came before that of a full step"):
        HeldFeatures(FULL_STEPS).used(1, values[1])


def test_a_run_forecasts_first_and_corrects_what_it_forecast():
    found = calibrate(pipe_of(), CACHE, STEPS, **SETTINGS)
    width = found.feature[0].shape[1]
    neutral = replace(found, feature=(torch.ones(STEPS, width), torch.zeros(STEPS, width)))
    config = DeepCacheConfig(INTERVAL, BRANCH, forecast=True)
    alone = DeepCachePlan(config, STEPS, fingerprint(tiny_unet()), FULL_STEPS, gains=found.gains)
    doubled = replace(neutral, feature=(2 * neutral.feature[0], neutral.feature[1]))
    seen = []
    for technique in (neutral, alone, doubled, found, replace(found, gains=None)):
        pipe, mains = pipe_of(), []
        apply(pipe, technique)
        resnet = [resnet for block in pipe.unet.up_blocks for resnet in block.resnets][-1 - BRANCH]
        resnet.register_forward_pre_hook(lambda module, args, mains=mains: mains.append(args[0][:, :width]))
        seen.append((draw(pipe, STEPS), mains))
    (image, mains), (expected, _), (other, twice) = seen[:3]
    assert torch.equal(image, expected)
    assert not torch.equal(image, other)
    assert torch.equal(twice[1], 2 * mains[1])  # until there, both are in the same state
    assert not torch.equal(seen[3][0], seen[4][0])


def test_a_plan_is_the_same_after_a_round_trip(plan, tmp_path):
    assert plan.layers.keys() == reentry_layers(tiny_unet(), BRANCH).keys()
    plan.save_pretrained(tmp_path)
    assert torch.equal(load_plan(tmp_path).gains, plan.gains)
    images = []
    for source in (plan, tmp_path):
        pipe = pipe_of()
        apply(pipe, source)
        images.append(draw(pipe, STEPS))
    assert torch.equal(*images)


@pytest.mark.parametrize("after", [1, 3, 5, 7, 9])
def test_an_interrupted_calibration_goes_on_to_the_same_plan(plan, tmp_path, monkeypatch, after):
    monkeypatch.setattr(Checkpoint, "due", lambda checkpoint: True)
    told = []

    def stop(done, total):
        told.append((done, total))
        if len(told) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe_of(), QUANTIZED, STEPS, **SETTINGS, on_progress=stop, checkpoint=tmp_path / "checkpoint")
    # Cached steps 3 and 5, the run's end, then two batches of each of three stages.
    assert told == [(done, 24) for done in (3, 4, 6, 10, 12, 16, 18, 22, 24)[:after]]
    pipe, evaluations = pipe_of(), []
    with on_evaluation(pipe.unet, evaluations.append):
        again = calibrate(pipe, QUANTIZED, STEPS, **SETTINGS, checkpoint=tmp_path / "checkpoint")
    again.save_pretrained(tmp_path / "again")
    plan.save_pretrained(tmp_path / "plan")
    files = [path.relative_to(tmp_path / "plan") for path in (tmp_path / "plan").rglob("*") if path.is_file()]
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "plan" / file).read_bytes()
    if after >= 3:
        assert len(evaluations) == 2 * (STEPS * 3 + 4) - (after - 3) * STEPS - 4 * min(2, max(0, after - 5))
