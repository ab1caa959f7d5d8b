"""Feature caches around a correction: the specification's counts, and every policy against a loop written by hand."""

import pytest
import torch

import iec
from iec.method import Clock, IECConfig, current_clock, spaced_timesteps
from iec.method.cache import RunCache, StepCaches

from . import reference
from .denoisers import Cached, GuidedCached, Recorded, deep, shallow
from .reference import same_bits


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(x, num_steps, interval, relaxations, policy, cached_steps=False, selected=None):
    """The corrected loop with a feature cache, written out."""
    stored = None
    timesteps = reference.quad(num_steps)
    for i, (timestep, pair) in enumerate(zip(timesteps, reference.pairs(timesteps), strict=True)):
        t = torch.full((len(x),), timestep)
        full = i % interval == 0
        if full:
            stored = deep(x, t)
        state = reference.ddim(x, shallow(x) + stored, *pair)
        if (full or cached_steps) and (selected is None or i in selected):
            for relaxation in relaxations:
                feature = stored if policy == "reuse" and not full else deep(state, t)
                target = reference.ddim(x, shallow(state) + feature, *pair)
                state = state + relaxation * (target - state)
                if policy == "refresh":
                    stored = feature
        x = state
    return x


# Which steps are corrected (Table 5)


@pytest.mark.parametrize(
    ("fraction", "steps"), [("1/4", [0, 10, 20, 80, 90]), ("1/8", [0, 10, 90]), ("1/10", [0, 90]), ("1/20", [0])]
)
@pytest.mark.parametrize("policy", ["refresh", "bypass", "reuse"])
def test_with_a_cache_of_interval_10_the_corrected_steps_are_those_of_table_5(fraction, steps, policy):
    config = IECConfig(steps=f"edges:{fraction}", tolerance=0.0, cache=policy)
    _, summary = iec.sample(Cached(10), noise(2, 3), 100, config=config, return_summary=True)
    assert summary.corrected == steps
    assert sorted(summary.corrected + summary.skipped) == summary.selected
    assert len(summary.selected) == {"1/4": 50, "1/8": 25, "1/10": 20, "1/20": 10}[fraction]
    assert summary.full_evaluations == 10 + len(steps)
    assert summary.cached_evaluations == 90


def test_by_default_every_full_step_and_no_other_is_corrected():
    _, summary = iec.sample(Cached(3), noise(2, 3), 10, return_summary=True)
    assert summary.selected == list(range(10))
    assert summary.corrected == [0, 3, 6, 9]
    assert summary.skipped == [1, 2, 4, 5, 7, 8]


@pytest.mark.parametrize(("policy", "full"), [("refresh", 4 + 20), ("bypass", 4 + 20), ("reuse", 4 + 8)])
def test_cached_steps_are_corrected_when_asked_at_the_price_of_the_policy(policy, full):
    config = IECConfig(num_iterations=2, tolerance=0.0, cached_steps=True, cache=policy)
    _, summary = iec.sample(Cached(3), noise(2, 3), 10, config=config, return_summary=True)
    assert summary.corrected == list(range(10))
    assert summary.skipped == []
    assert summary.full_evaluations == full
    assert summary.cached_evaluations == 30 - full


def test_a_corrected_run_computes_as_many_deep_features_as_the_summary_says():
    computed = []
    cached = Cached(5, spoil=lambda feature: computed.append(1) or feature)
    _, summary = iec.sample(cached, noise(2, 3), 20, config=IECConfig(tolerance=0.0), return_summary=True)
    assert len(computed) == summary.full_evaluations == 8


# The three policies


@pytest.mark.parametrize("policy", ["refresh", "bypass", "reuse"])
@pytest.mark.parametrize("cached_steps", [False, True])
@pytest.mark.parametrize("relaxations", [(0.5,), (1.0, 0.5), (0.0,)], ids=["paper", "released", "zero"])
@pytest.mark.parametrize("selected", [None, (0, 1, 8)], ids=["all steps", "some steps"])
def test_each_policy_equals_the_loop_written_by_hand(policy, cached_steps, relaxations, selected):
    x = noise(3, 4)
    config = IECConfig(
        relaxation=relaxations,
        num_iterations=len(relaxations),
        tolerance=0.0,
        cached_steps=cached_steps,
        cache=policy,
        steps="all" if selected is None else selected,
    )
    expected = by_hand(x, 12, 4, relaxations, policy, cached_steps, selected)
    torch.testing.assert_close(iec.sample(Cached(4), x, 12, config=config), expected, rtol=0, atol=1e-11)


def test_the_policies_give_different_images():
    results = {
        policy: by_hand(noise(3, 4), 12, 4, (0.5,), policy, cached_steps=True)
        for policy in ("refresh", "bypass", "reuse")
    }
    results["none"] = by_hand(noise(3, 4), 12, 4, (), "bypass")
    names = list(results)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (results[a] - results[b]).abs().max() > 1e-3, (a, b)


@pytest.mark.parametrize("policy", ["bypass", "reuse"])
@pytest.mark.parametrize("cached_steps", [False, True])
def test_zero_relaxation_keeps_every_bit_unless_the_cache_is_refreshed(policy, cached_steps):
    x = noise(3, 4, dtype=torch.float32)
    x[0] = -0.0
    config = IECConfig(relaxation=0.0, num_iterations=2, tolerance=0.0, cache=policy, cached_steps=cached_steps)
    assert same_bits(iec.sample(Cached(4), x, 12, config=config), iec.sample(Cached(4), x, 12, config=None))


def test_zero_relaxation_with_refresh_is_the_control_that_changes_the_cache_alone():
    x = noise(3, 4)
    control = iec.sample(Cached(4), x, 12, config=IECConfig(relaxation=0.0, cache="refresh"))
    torch.testing.assert_close(control, by_hand(x, 12, 4, (0.0,), "refresh"), rtol=0, atol=1e-11)
    assert (control - iec.sample(Cached(4), x, 12, config=None)).abs().max() > 1e-3


def test_with_interval_1_the_policies_agree_with_a_model_without_a_cache():
    x = noise(3, 4)
    config = {policy: IECConfig(num_iterations=2, cache=policy) for policy in ("refresh", "bypass", "reuse")}
    plain = iec.sample(lambda x, t: shallow(x) + deep(x, t), x, 8, config=IECConfig(num_iterations=2))
    for policy in config:
        assert same_bits(iec.sample(Cached(1), x, 8, config=config[policy]), plain)


class Adaptive:
    """A cache that decides by its own state: full when the input has moved by more than `threshold` since it was."""

    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, x, t):
        clock = current_clock()
        last = clock.storage.get("input")
        moved = last is None or (x - last).abs().max() > self.threshold
        full = clock.cache_policy == "full" or bool(moved)
        clock.record(full)
        if full:
            clock.storage["input"], clock.storage["deep"] = x.clone(), deep(x, t)
        return shallow(x) + clock.storage["deep"]


def test_reuse_lets_the_cache_decide_again_from_the_state_before_the_main_call():
    x, num_steps, threshold = noise(1, 4, seed=2), 12, 0.3
    expected, decisions = x, []
    timesteps = reference.quad(num_steps)
    last = stored = None
    for timestep, pair in zip(timesteps, reference.pairs(timesteps), strict=True):
        t = torch.tensor([timestep])
        before = last, stored
        full = last is None or bool((expected - last).abs().max() > threshold)
        if full:
            last, stored = expected, deep(expected, t)
        state = reference.ddim(expected, shallow(expected) + stored, *pair)
        again = before[0] is None or bool((state - before[0]).abs().max() > threshold)
        feature = deep(state, t) if again else before[1]
        decisions.append((full, again))
        expected = state + 0.5 * (reference.ddim(expected, shallow(state) + feature, *pair) - state)
    assert len(set(decisions)) == 4  # every combination of full and cached, in the main call and in the pass
    config = IECConfig(tolerance=0.0, cached_steps=True, cache="reuse")
    result, summary = iec.sample(Adaptive(threshold), x, num_steps, config=config, return_summary=True)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    assert [(record.full, record.cached) for record in summary.steps] == [
        (full + again, 2 - full - again) for full, again in decisions
    ]


# Refresh writes only the rows whose update was kept


def spoil_sample_1(feature):
    """In correction passes, sample 1 (in every part of a guided batch of 3) becomes NaN."""
    if current_clock().pass_index == 0:
        return feature
    broken = feature.clone()
    broken[1::3] = torch.nan
    return broken


@pytest.mark.parametrize("kind", [Cached, GuidedCached])
def test_refresh_leaves_the_features_of_a_sample_that_fell_back_as_the_main_call_left_them(kind):
    x = noise(3, 4)
    broken, summary = iec.sample(kind(4, spoil=spoil_sample_1), x, 12, return_summary=True)
    assert all(record.samples_fell_back == [1] for record in summary.steps if record.corrected)
    assert same_bits(broken[1], iec.sample(kind(4), x, 12, config=None)[1])
    healthy = iec.sample(kind(4), x, 12)
    torch.testing.assert_close(broken[[0, 2]], healthy[[0, 2]], rtol=0, atol=1e-11)
    assert (healthy - broken)[1].abs().max() > 1e-3


def test_a_sample_that_falls_back_in_the_second_pass_also_gives_back_the_features_of_the_first():
    def spoil(feature):
        return spoil_sample_1(feature) if current_clock().pass_index == 2 else feature

    x = noise(3, 4)
    config = IECConfig(num_iterations=2, tolerance=0.0)
    broken, summary = iec.sample(Cached(4, spoil=spoil), x, 12, config=config, return_summary=True)
    assert all(record.samples_fell_back == [1] for record in summary.steps if record.corrected)
    assert same_bits(broken[1], iec.sample(Cached(4), x, 12, config=None)[1])


@pytest.mark.parametrize("kind", [Cached, GuidedCached])
@pytest.mark.parametrize("policy", ["refresh", "bypass", "reuse"])
def test_with_a_cache_and_a_tolerance_each_image_is_the_same_alone_and_in_a_batch(kind, policy):
    x = noise(5, 4)
    config = IECConfig(num_iterations=3, tolerance=0.02, cache=policy)
    together, summary = iec.sample(kind(4), x, 12, config=config, return_summary=True)
    frozen = [torch.stack(record.residuals).isnan() for record in summary.steps if record.corrected]
    assert any(step.any() and not step.all(1).any() for step in frozen)  # some samples froze before others
    for row in range(5):
        alone = iec.sample(kind(4), x[row : row + 1], 12, config=config)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-9)


def test_guided_rows_are_refreshed_in_both_halves():
    x = noise(2, 4)
    seen = {}

    class Watched(GuidedCached):
        def __call__(self, x, t):
            eps = super().__call__(x, t)
            clock = current_clock()
            seen[clock.step, clock.pass_index] = clock.storage["deep"]
            return eps

    recorded = Recorded(Watched(2))
    iec.sample(recorded, x, 2, config=IECConfig(tolerance=0.0))
    state, t = recorded.input(0, 1), torch.full((4,), 800)
    expected = deep(torch.cat([state, 0.8 * state + 0.1]), t)
    torch.testing.assert_close(seen[1, 0], expected, rtol=0, atol=1e-12)


def test_a_row_mask_reaches_the_rows_of_its_samples_in_every_part_of_a_stacked_batch():
    clock = Clock(1)
    cache = RunCache(clock)
    old, new = torch.zeros(6, 2, 2), torch.ones(6, 2, 2)
    clock.storage["feature"] = old
    state = cache.snapshot()
    clock.storage["feature"] = new
    cache.restore(state, torch.tensor([True, False, True]))
    assert clock.storage["feature"][:, 0, 0].tolist() == [0, 1, 0, 0, 1, 0]
    assert (old == 0).all()
    assert (new == 1).all()


def test_a_whole_restore_forgets_what_came_later():
    clock = Clock(1)
    cache = RunCache(clock)
    clock.storage["a"] = torch.zeros(1)
    state = cache.snapshot()
    clock.storage["a"], clock.storage["b"] = torch.ones(1), torch.ones(1)
    cache.restore(state)
    assert set(clock.storage) == {"a"}
    assert clock.storage["a"].item() == 0


@pytest.mark.parametrize(
    ("answers", "full"), [((), True), ((None,), True), ((True, None), True), ((True, False), False), ((False,), False)]
)
def test_a_step_is_full_unless_one_of_its_caches_shortened_it(answers, full):
    clocks = [Clock(1) for _ in answers]
    step = StepCaches([RunCache(clock) for clock in clocks], "refresh")
    for clock, answer in zip(clocks, answers, strict=True):
        if answer is not None:
            clock.record(answer)
    assert step.was_full() == full


def test_forced_full_is_undone_even_after_an_error():
    clock = Clock(1)
    cache = RunCache(clock)
    seen = []

    def fail_inside():
        with cache.forced_full():
            seen.append(clock.cache_policy)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert seen == ["full"]
    assert clock.cache_policy == "decide"


def test_the_hand_written_schedule_is_that_of_the_sampler():
    assert spaced_timesteps(12) == reference.quad(12)
