"""Step selectors against the specification's sets and exact arithmetic."""

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iec.method.steps import select_steps, validate_selector


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("all", {0, 1, 2, 3, 4}),
        ("none", set()),
        ("first", {0}),
        ("last", {4}),
        ([3, 1, 3], {1, 3}),
        (range(0, 5, 2), {0, 2, 4}),
        (set(), set()),
        (lambda step, num_steps: step == num_steps - 2, {3}),
    ],
)
def test_each_kind_of_selector_chooses_its_steps(selector, expected):
    assert select_steps(selector, 5) == expected


@pytest.mark.parametrize(("fraction", "count"), [("1/4", 50), ("1/8", 25), ("1/10", 20), ("1/20", 10)])
def test_edges_of_100_steps_choose_as_many_as_table_5(fraction, count):
    assert len(select_steps(f"edges:{fraction}", 100)) == count


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [("1/4", {0, 10, 20, 80, 90}), ("1/8", {0, 10, 90}), ("1/10", {0, 90}), ("1/20", {0})],
)
def test_edges_among_full_steps_of_interval_10_are_those_of_table_5(fraction, expected):
    assert select_steps(f"edges:{fraction}", 100) & set(range(0, 100, 10)) == expected


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300))
def test_edges_choose_a_ceiling_at_the_start_and_a_floor_at_the_end(numerator, denominator, num_steps):
    a = Fraction(numerator, denominator)
    if a > Fraction(1, 2):
        a = a / (2 * ceil(a))
    start, end = range(ceil(a * num_steps)), range(num_steps - floor(a * num_steps), num_steps)
    assert select_steps(f"edges:{a}", num_steps) == {*start, *end}


def test_edges_are_exact_where_floating_point_is_not():
    assert 0.07 * 100 > 7  # so that a comparison of floats would choose step 7 too
    assert select_steps("edges:0.07", 100) == {*range(7), *range(93, 100)} == select_steps("edges:7/100", 100)


def test_edges_of_one_half_are_all_steps():
    assert select_steps("edges:1/2", 7) == set(range(7))


@pytest.mark.parametrize("fraction", ["0", "-1/4", "2/3", "1/0", "x", "", "nan", "inf"])
def test_a_bad_edges_fraction_is_refused(fraction):
    with pytest.raises(ValueError, match="A must be a fraction above 0 and at most 1/2"):
        validate_selector(f"edges:{fraction}")


@pytest.mark.parametrize("selector", ["", "ALL", "edge:1/4", "0,1"])
def test_an_unknown_name_is_refused(selector):
    with pytest.raises(ValueError, match="Unknown step selector"):
        validate_selector(selector)


@pytest.mark.parametrize("selector", [[0.5], ["0"], [True], [None], 3, None, 0.5])
def test_what_is_no_selector_is_a_type_error(selector):
    with pytest.raises(TypeError):
        validate_selector(selector)


def test_negative_indices_are_refused_when_validated_and_large_ones_when_resolved():
    with pytest.raises(ValueError, match="-1 is negative"):
        validate_selector([3, -1])
    validate_selector([3])
    assert select_steps([3], 4) == {3}
    with pytest.raises(ValueError, match=r"Step 5 .* 5 steps \(0 to 4\)"):
        select_steps([9, 2, 5], 5)


def test_a_callable_is_asked_for_every_step_once_in_order():
    asked = []
    select_steps(lambda step, num_steps: asked.append((step, num_steps)) is not None, 3)
    assert asked == [(0, 3), (1, 3), (2, 3)]
