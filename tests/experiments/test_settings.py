import pytest
from hypothesis import given
from hypothesis import strategies as st

import iec
from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.evaluation.cost import EvaluationCost
from iec.experiments.demo import DemoConfig, make_plan
from iec.experiments.plans import needs_plan, technique_settings
from iec.experiments.settings import Setting, describe, rivals

UNIT = EvaluationCost(1000, 416)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (Setting(20), (20, 0)),
        (Setting(20, DeepCacheConfig(5)), (4, 16)),
        (Setting(20, DeepCacheConfig(10)), (2, 18)),
        (Setting(20, DeepCacheConfig(5, schedule="plms", forecast=True)), (4, 16)),
        (Setting(20, None, iec.IECConfig()), (40, 0)),
        (Setting(20, None, iec.IECConfig(steps="edges:1/10")), (24, 0)),
        (Setting(20, DeepCacheConfig(5), iec.IECConfig()), (8, 16)),
        # Of the edges, only step 0 is full.
        (Setting(20, DeepCacheConfig(5), iec.IECConfig(steps="edges:1/10")), (5, 16)),
        (Setting(20, DeepCacheConfig(5), iec.IECConfig.released()), (12, 16)),
        (Setting(20, DeepCacheConfig(5), iec.IECConfig(cached_steps=True)), (24, 16)),
    ],
)
def test_planned_evaluations(setting, expected):
    assert setting.evaluations() == expected


def test_rivals_of_a_corrected_cache_are_the_neighbouring_intervals_and_ddim():
    # 5F + 16C = 11.66: N=4 costs 5 + 15 c = 11.24, N=3 costs 7 + 13 c = 12.41.
    found = rivals(Setting(20, DeepCacheConfig(5), iec.IECConfig(steps="edges:1/10")), UNIT)
    assert found == [Setting(20, DeepCacheConfig(4)), Setting(20, DeepCacheConfig(3)), Setting(12)]


def test_rivals_of_corrected_full_precision_are_full_precision_and_more_steps():
    assert rivals(Setting(20, None, iec.IECConfig()), UNIT) == [Setting(20), Setting(40)]


@given(
    interval=st.integers(2, 20),
    steps=st.sampled_from(["all", "first", "edges:1/10", "edges:1/4"]),
    cached=st.integers(50, 950),
)
def test_no_plain_interval_lies_closer_than_the_rivals(interval, steps, cached):
    unit = EvaluationCost(1000, cached)
    setting = Setting(20, DeepCacheConfig(interval), iec.IECConfig(steps=steps))
    target = setting.cost(unit)
    costs = [Setting(20, DeepCacheConfig(n)).cost(unit) for n in range(1, 21)]
    found = [rival.cost(unit) for rival in rivals(setting, unit)]
    below, above = [c for c in costs if c <= target], [c for c in costs if c > target]
    assert not below or max(below) in found
    assert not above or min(above) in found
    assert any(abs(cost - target) <= 0.5 for cost in found)  # DDIM with the nearest number of steps
    assert all(rival.correction is None for rival in rivals(setting, unit))


def test_the_plan_runs_every_setting_once_and_fits_the_images_to_the_evaluations():
    config = DemoConfig.load()
    plan = make_plan(config, config.systems, UNIT)
    assert len(set(plan.settings)) == len(plan.settings)
    assert plan.settings[0] == plan.reference
    assert {setting for system in plan.systems for setting in system.settings} <= set(plan.settings)
    assert plan.num_images >= config.minimum_images
    cheap = make_plan(config, config.systems, EvaluationCost(1000, 10))
    assert cheap.num_images >= plan.num_images
    assert make_plan(config, config.systems, UNIT, num_images=12).num_images == 12
    assert plan.evaluations == pytest.approx(plan.num_images * sum(s.cost(UNIT) for s in plan.settings))


def test_what_is_off_leaves_the_keys_of_stored_rows_as_they_were():
    assert "bias_correction" not in technique_settings(QuantizationConfig())
    assert technique_settings(QuantizationConfig(bias_correction=True))["bias_correction"] is True
    assert "bias_correction" not in technique_settings(CacheQuantConfig())
    assert technique_settings(DeepCacheConfig(5, 0)) == {
        "kind": "DeepCacheConfig",
        "interval": 5,
        "branch": 0,
        "schedule": "uniform",
        "centre": 15,
        "power": 1.4,
    }
    assert technique_settings(DeepCacheConfig(forecast=True))["forecast"] is True


@pytest.mark.parametrize(
    ("config", "name", "plan"),
    [
        (DeepCacheConfig(5), "DeepCache N=5", False),
        (DeepCacheConfig(5, forecast=True), "DeepCache N=5 forecast", True),
        (DeepCacheConfig(5, schedule="dps", forecast=True), "DeepCache N=5 dps forecast", True),
        (DeepCacheConfig(5, schedule="dps"), "DeepCache N=5 dps", True),
        (CacheQuantConfig(5), "CacheQuant N=5 W8A8", True),
        (CacheQuantConfig(5, forecast=True), "CacheQuant N=5 forecast W8A8", True),
        (
            CacheQuantConfig(5, schedule="uniform", weights=None, forecast=True),
            "CacheQuant N=5 uniform forecast float",
            True,
        ),
    ],
)
def test_a_forecast_is_named_and_needs_a_plan(config, name, plan):
    assert describe(config) == name
    assert needs_plan(config) == plan
