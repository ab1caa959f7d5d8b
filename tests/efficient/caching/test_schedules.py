"""Which steps are full: the specification's vectors, and what every schedule must satisfy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iec.efficient import DeepCacheConfig
from iec.efficient.caching import centred_schedule, power_schedule, uniform_schedule

CENTRED = {
    (50, 5, 15, 1.4): [0, 5, 9, 13, 17, 21, 26, 31, 37, 43],
    (50, 10, 15, 1.4): [0, 9, 17, 26, 37],
    (100, 10, 15, 1.2): [0, 9, 15, 23, 33, 43, 53, 64, 76, 87],
}


@pytest.mark.parametrize("case", CENTRED, ids=str)
def test_the_centred_vectors(case):
    assert list(centred_schedule(*case)) == CENTRED[case]


def test_plms_counts_calls():
    # Stable Diffusion with T = 50 makes 51 calls (spec 2.4: {0} and {1 + N, 1 + 2N, ...} up to T).
    assert DeepCacheConfig(5, schedule="plms").full_steps(51) == (0, 6, 11, 16, 21, 26, 31, 36, 41, 46)
    assert DeepCacheConfig(5, schedule="plms").full_steps(52)[-1] == 51


def test_the_power_vector():
    expected = [0, 5, 15, 27, 42, 59, 78, 98, 120, 144, 168, 194, 221]
    assert list(power_schedule(250, 20)) == expected
    assert list(power_schedule(250, 20, 1.5)) == expected


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_uniform_schedule_is_every_nth_step(num_steps, interval):
    steps = uniform_schedule(num_steps, interval)
    assert list(steps) == [step for step in range(num_steps) if step % interval == 0]


def is_a_schedule(steps, num_steps):
    return steps[0] == 0 and list(steps) == sorted(set(steps)) and 0 <= steps[-1] < num_steps


@given(st.integers(1, 300), st.integers(1, 30), st.floats(1.05, 3))
def test_a_power_schedule_begins_with_0_and_stays_inside_the_run(num_steps, interval, power):
    if interval <= num_steps:
        steps = power_schedule(num_steps, interval, power)
        assert is_a_schedule(steps, num_steps)
        assert len(steps) <= -(-num_steps // interval)


@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 40), st.floats(1.05, 3))
def test_a_centred_schedule_has_the_number_of_full_steps_or_is_refused(num_steps, interval, centre, power):
    if interval > num_steps:
        return
    try:
        steps = centred_schedule(num_steps, interval, centre, power)
    except ValueError as error:
        assert "uniform schedule" in str(error)  # noqa: PT017
        return
    assert is_a_schedule(steps, num_steps)
    assert len(steps) == -(-num_steps // interval)


def published_centred(num_steps, interval, centre, power):
    """The formula of the specification in numpy, with its retries and with ends that no rounding moves."""
    count = -(-num_steps // interval)
    while power > 1:
        ends = [complex(-centre) ** (1 / power), complex(num_steps - centre) ** (1 / power)]
        inner = np.real(np.linspace(*ends, count + 1) ** power)[1:-1]
        values = sorted({-centre, *map(int, inner), num_steps - centre})
        steps = sorted({0, *(value + centre for value in values[1:-1])})
        if len(steps) == count:
            return steps
        power -= 0.02
    return None


@pytest.mark.parametrize("num_steps", [20, 50, 75, 100, 250])
@pytest.mark.parametrize("interval", [2, 3, 5, 10])
@pytest.mark.parametrize("power", [1.2, 1.4, 1.8])
def test_a_centred_schedule_is_the_published_formula(num_steps, interval, power):
    expected = published_centred(num_steps, interval, 15, power)
    if expected is None:
        with pytest.raises(ValueError, match="uniform schedule"):
            centred_schedule(num_steps, interval, 15, power)
    else:
        assert list(centred_schedule(num_steps, interval, 15, power)) == expected


def test_no_schedule_is_refused_without_a_power_above_1():
    with pytest.raises(ValueError, match="uniform schedule"):
        centred_schedule(100, 10, 15, 1.0)


# The configuration


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DeepCacheConfig(), uniform_schedule(50, 5)),
        (DeepCacheConfig(10, schedule="centred"), (0, 9, 17, 26, 37)),
        (DeepCacheConfig(5, schedule="centred", centre=15, power=1.4), tuple(CENTRED[50, 5, 15, 1.4])),
        (DeepCacheConfig(5, schedule="power", power=1.5), power_schedule(50, 5, 1.5)),
        (DeepCacheConfig(7, schedule="plms"), (0, 8, 15, 22, 29, 36, 43)),
        (DeepCacheConfig(49, schedule="plms"), (0,)),
        (DeepCacheConfig(50), (0,)),
        (DeepCacheConfig(1), tuple(range(50))),
    ],
)
def test_a_configuration_names_its_schedule(config, expected):
    assert config.full_steps(50) == expected


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"interval": 0}, ValueError),
        ({"interval": -1}, ValueError),
        ({"interval": 2.0}, TypeError),
        ({"interval": True}, TypeError),
        ({"interval": None}, (TypeError, ValueError)),
        ({"branch": -1}, ValueError),
        ({"branch": 1.5}, TypeError),
        ({"schedule": "fisher"}, ValueError),
        ({"schedule": "centred", "power": float("nan")}, (TypeError, ValueError)),
        ({"schedule": "power", "power": 0}, (TypeError, ValueError)),
        ({"schedule": "power", "power": -1.0}, (TypeError, ValueError)),
        ({"schedule": "centred", "centre": "middle"}, (TypeError, ValueError)),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_they_are_made(setting, error):
    with pytest.raises(error, match=r"\.$"):
        DeepCacheConfig(**setting)


@pytest.mark.parametrize("num_steps", [1, 2, 16, 20, 50])
@pytest.mark.parametrize("schedule", ["uniform", "centred", "power"])
def test_an_interval_of_1_is_full_at_every_step(schedule, num_steps):
    assert DeepCacheConfig(1, schedule=schedule).full_steps(num_steps) == tuple(range(num_steps))


@pytest.mark.parametrize("schedule", ["uniform", "centred", "power"])
def test_an_interval_longer_than_the_run_is_refused(schedule):
    with pytest.raises(ValueError, match="11 is longer than the run of 10 steps"):
        DeepCacheConfig(11, schedule=schedule).full_steps(10)
