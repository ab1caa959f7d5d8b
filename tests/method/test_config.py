"""The settings: what they refuse, the presets, and their written form."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iec.method import IECConfig

outside = st.one_of(
    st.floats(max_value=0, exclude_max=True), st.floats(min_value=2), st.just(math.nan), st.integers(2, 9)
)
relaxation = st.floats(0, 2, exclude_max=True)
selectors = st.one_of(
    st.sampled_from(["all", "none", "first", "last", "edges:1/10", "edges:0.25"]), st.lists(st.integers(0, 50))
)


@st.composite
def configs(draw):
    num_iterations = draw(st.integers(0, 4))
    per_iteration = st.lists(relaxation, min_size=num_iterations, max_size=num_iterations)
    return IECConfig(
        relaxation=draw(st.one_of(relaxation, per_iteration)),
        num_iterations=num_iterations,
        steps=draw(selectors),
        cached_steps=draw(st.booleans()),
        tolerance=draw(st.floats(0, 1e6)),
        tolerance_mode=draw(st.sampled_from(["relative", "absolute"])),
        cache=draw(st.sampled_from(["refresh", "bypass", "reuse"])),
    )


def test_the_default_is_the_paper():
    config = IECConfig()
    assert config == IECConfig.paper()
    assert config.relaxations == (0.5,)
    assert (config.steps, config.cached_steps, config.cache) == ("all", False, "refresh")
    assert (config.tolerance, config.tolerance_mode) == (1e-5, "relative")


def test_the_released_preset_is_that_of_the_published_code():
    config = IECConfig.released()
    assert config.relaxations == (1.0, 0.5)
    assert config.num_iterations == 2
    assert (config.tolerance, config.tolerance_mode) == (1e-6, "relative")


def test_stable_diffusion_is_corrected_at_its_first_step_alone():
    assert IECConfig.stable_diffusion() == IECConfig(relaxation=0.5, num_iterations=1, steps="first")


def test_one_relaxation_serves_every_iteration():
    assert IECConfig(relaxation=0.25, num_iterations=3).relaxations == (0.25, 0.25, 0.25)
    assert IECConfig(num_iterations=0).relaxations == ()


@given(outside)
def test_a_relaxation_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match=r"relaxation must lie in \[0, 2\)"):
        IECConfig(relaxation=value)
    with pytest.raises(ValueError, match=r"relaxation must lie in \[0, 2\)"):
        IECConfig(relaxation=(0.5, value), num_iterations=2)


@given(st.lists(relaxation, max_size=5), st.integers(0, 5))
def test_the_number_of_relaxations_must_be_that_of_the_iterations(values, num_iterations):
    if len(values) == num_iterations:
        assert IECConfig(relaxation=values, num_iterations=num_iterations).relaxations == tuple(values)
    else:
        with pytest.raises(ValueError, match=f"{len(values)} values for {num_iterations} iterations"):
            IECConfig(relaxation=values, num_iterations=num_iterations)


@given(st.integers(max_value=-1))
def test_a_negative_number_of_iterations_is_refused(value):
    with pytest.raises(ValueError, match="num_iterations must not be negative"):
        IECConfig(num_iterations=value)


@given(st.one_of(st.floats(max_value=0, exclude_max=True), st.sampled_from([math.nan, math.inf])))
def test_a_bad_tolerance_is_refused(value):
    with pytest.raises(ValueError, match="tolerance must be a finite number of at least 0"):
        IECConfig(tolerance=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relaxation", "0.5"),
        ("relaxation", None),
        ("relaxation", True),
        ("relaxation", ("a",)),
        ("num_iterations", 1.0),
        ("num_iterations", True),
        ("num_iterations", None),
        ("tolerance", "1e-5"),
        ("tolerance", False),
        ("cached_steps", 1),
        ("cached_steps", None),
        ("steps", None),
        ("steps", 3),
    ],
)
def test_a_wrong_type_is_refused(name, value):
    with pytest.raises(TypeError):
        IECConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "middle"),
        ("steps", "edges:2/3"),
        ("steps", [-1]),
        ("cache", "keep"),
        ("cache", None),
        ("tolerance_mode", "max"),
    ],
)
def test_an_unknown_choice_is_refused_in_a_sentence_that_names_it(name, value):
    with pytest.raises(ValueError, match=r"\.$") as error:
        IECConfig(**{name: value})
    assert str(value[0] if isinstance(value, list) else value) in str(error.value)


@given(configs())
def test_the_written_form_comes_back_equal(config):
    written = json.loads(json.dumps(config.to_dict()))
    again = IECConfig.from_dict(written)
    assert again == config
    assert hash(again) == hash(config)


def test_the_written_form_of_the_default():
    assert IECConfig().to_dict() == {
        "relaxation": 0.5,
        "num_iterations": 1,
        "steps": "all",
        "cached_steps": False,
        "tolerance": 1e-5,
        "tolerance_mode": "relative",
        "cache": "refresh",
    }


def test_missing_settings_take_their_defaults_and_unknown_ones_are_refused():
    assert IECConfig.from_dict({"num_iterations": 2}) == IECConfig(num_iterations=2)
    with pytest.raises(ValueError, match="Unknown correction setting 'lambda'"):
        IECConfig.from_dict({"lambda": 0.5})


def test_a_callable_selector_cannot_be_written_down():
    with pytest.raises(ValueError, match="callable"):
        IECConfig(steps=lambda step, num_steps: True).to_dict()


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        IECConfig().relaxation = 1.0


def test_step_indices_and_relaxations_are_kept_as_hashable_values():
    indices = [5, 1, 5]
    config = IECConfig(relaxation=[1.0, 0.5], num_iterations=2, steps=indices)
    indices.append(9)
    assert config == IECConfig(relaxation=(1.0, 0.5), num_iterations=2, steps={1, 5})
    assert {config: "found"}[IECConfig(relaxation=(1.0, 0.5), num_iterations=2, steps=(1, 5))] == "found"
