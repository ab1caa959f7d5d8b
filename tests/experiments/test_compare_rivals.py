from dataclasses import replace

import pytest

import iec
from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.evaluation.cost import EvaluationCost
from iec.experiments.compare.request import Request
from iec.experiments.compare.rivals import affordable, candidates, possible, tuned_families
from iec.experiments.compare.running import workload
from iec.experiments.corrections import CALIBRATED
from iec.experiments.samplers.sampling import PLAIN, Sampling
from iec.experiments.settings import Setting
from iec.method.noise import CALIBRATION_OFFSET

UNIT = EvaluationCost(1000, 100)
REFRESH = iec.IECConfig(relaxation=0, cache="refresh")
PAPER, EDGES = iec.IECConfig.paper(), iec.IECConfig(steps="edges:1/10")
CACHED = Request(DeepCacheConfig(5), (PAPER, EDGES), num_steps=20)


def settings_of(request, role):
    return [candidate.setting for candidate in candidates(request, UNIT) if candidate.role == role]


def test_every_rival_of_a_corrected_cache_is_there():
    # IEC all: 8 F + 16 C = 9.6. edges: 5 F + 16 C = 6.6. DeepCache N=5 with T steps: 0.9 ceil(T / 5) + 0.1 T.
    cache, paper, edges = DeepCacheConfig(5), PAPER, EDGES
    full, plain = Setting(20), Setting(20, cache)
    assert settings_of(CACHED, "full precision") == [
        full,
        replace(full, correction=paper),
        replace(full, correction=edges),
    ]
    assert settings_of(CACHED, "without correction") == [plain]
    assert settings_of(CACHED, "corrected") == [replace(plain, correction=paper), replace(plain, correction=edges)]
    # N=3: 7 F + 13 C = 8.3, N=2: 10 F + 10 C = 11; N=4: 5 F + 15 C = 6.5.
    assert {setting.interval for setting in settings_of(CACHED, "another cache interval")} == {2, 3, 4}
    # 34 steps cost 7 F + 27 C = 9.7, 33 cost 9.6; 22 cost 5 F + 17 C = 6.7, 21 cost 6.6; 9 and 6 without the cache.
    steps = settings_of(CACHED, "more or fewer DDIM steps")
    assert set(steps) == {Setting(33, cache), Setting(21, cache), Setting(40, cache), Setting(9), Setting(6)}
    solved = settings_of(CACHED, "another solver")
    found = {(setting.sampler.solver, setting.num_steps) for setting in solved}
    solvers = ("heun", "dpm++2m", "unipc", "deis", "ipndm", "plms")
    assert found == {(solver, count) for solver in solvers for count in (33, 21)}
    assert {setting.technique for setting in solved} == {cache}
    assert settings_of(CACHED, "cache refresh without correction") == [
        replace(plain, correction=REFRESH), replace(plain, correction=replace(REFRESH, steps="edges:1/10")),
    ]  # fmt: skip


@pytest.mark.parametrize("technique", [None, QuantizationConfig()])
def test_without_a_cache_rivals_make_as_many_evaluations_as_the_corrected_run(technique):
    request = Request(technique, (iec.IECConfig.paper(),), num_steps=20)
    counts = {setting.sampler.solver: setting.num_steps for setting in settings_of(request, "another solver")}
    assert counts == {"heun": 39, "dpm++2m": 40, "unipc": 40, "deis": 40, "ipndm": 40, "plms": 40}
    assert settings_of(request, "more or fewer DDIM steps") == [Setting(40, technique)]
    assert not settings_of(request, "cache refresh without correction")
    assert not settings_of(request, "another cache interval")


def test_two_hundred_steps_stand_beside_a_hundred_corrected_ones():
    request = Request(QuantizationConfig(), (iec.IECConfig(steps="first"),), num_steps=100)
    assert Setting(200, QuantizationConfig()) in settings_of(request, "more or fewer DDIM steps")


def test_rivals_of_a_quantized_cache_stay_quantized():
    technique = CacheQuantConfig(5)
    request = Request(technique, num_steps=20)
    for candidate in candidates(request, UNIT):
        if candidate.role != "full precision":
            assert candidate.setting.technique in (technique, technique.quantization) or (
                candidate.role == "another cache interval" and isinstance(candidate.setting.technique, CacheQuantConfig)
            )


@pytest.mark.parametrize("sampling", [PLAIN, Sampling("heun"), Sampling("dpm++2m"), Sampling("deis"), Sampling("plms")])
@pytest.mark.parametrize("technique", [None, DeepCacheConfig(5), DeepCacheConfig(3, schedule="power")])
@pytest.mark.parametrize("budget", [6.6, 9.6, 17.0])
def test_no_possible_run_of_more_steps_is_affordable(sampling, technique, budget):
    request = Request(technique)
    found = affordable(Setting(20, technique, sampler=sampling), budget, UNIT, request)
    assert found.cost(UNIT) <= budget + 1e-9
    longer = [replace(found, num_steps=found.num_steps + extra) for extra in (1, 2)]
    assert all(setting.cost(UNIT) > budget for setting in longer if possible(setting, request))


def test_a_budget_that_pays_for_nothing_has_no_rival():
    assert affordable(Setting(20, sampler=Sampling("plms")), 3.0, UNIT, Request()) is None


def test_uniform_spacing_leaves_out_what_it_cannot_take():
    request = Request(None, (iec.IECConfig.paper(),), num_steps=15, spacing="uniform")
    assert not possible(Setting(30), request)
    assert [setting.num_steps for setting in settings_of(request, "more or fewer DDIM steps")] == [25]
    [heun] = [s for s in settings_of(request, "another solver") if s.sampler.solver == "heun"]
    assert heun.num_steps == 19  # ten steps: 1000 / 10 is whole


def test_a_cache_that_searches_its_steps_needs_two_per_interval():
    request = Request(DeepCacheConfig(5, schedule="dps"))
    assert not possible(Setting(9, request.technique), request)
    assert possible(Setting(10, request.technique), request)


def test_no_setting_is_sampled_twice():
    found = [candidate.setting for candidate in candidates(CACHED, UNIT)]
    assert len(found) == len(set(found))


def test_tuned_settings_cost_what_the_model_costs_and_none_is_the_model():
    families = tuned_families(CACHED)
    assert [{setting.evaluations() for setting in family} for family in families] == [{(4, 16)}] * 2
    assert CACHED.plain not in [setting for family in families for setting in family]


def test_the_estimate_counts_every_row():
    request = replace(CACHED, images=100)
    work = workload(request, UNIT)
    rows = sum(candidate.setting.cost(UNIT) for candidate in work.candidates) + 2 * 5.6
    tried = sum(len(family) for family in work.families) * 5.6
    followed = 20 + 5.6 + 9.6 + 6.6 + 40 + 24
    assert work.evaluations == pytest.approx(100 * rows + 100 * tried + 64 * followed)
    assert work.plans == 2  # of full precision with 9 and with 6 steps, calibrated
    assert workload(Request(QuantizationConfig(), (iec.IECConfig.paper(),)), UNIT).plans == 8


def test_what_costs_no_evaluation_has_the_rivals_of_the_plain_model_and_a_plan():
    request = Request(DeepCacheConfig(5), (CALIBRATED, iec.AdamsConfig()), num_steps=20)
    corrected = settings_of(request, "corrected")
    assert {setting.evaluations() for setting in corrected} == {request.plain.evaluations()}
    assert settings_of(request, "full precision") == [
        Setting(20), Setting(20, None, CALIBRATED), Setting(20, None, iec.AdamsConfig()),
    ]  # fmt: skip
    assert not settings_of(request, "cache refresh without correction")
    assert workload(request, UNIT).plans == 3


def test_tuning_never_sees_a_judged_image():
    assert CALIBRATION_OFFSET == 2000
    assert Request(images=5000).tuning_images == 256
