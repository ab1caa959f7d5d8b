"""Calls that are made together: their order, and how they end."""

import threading
from contextvars import ContextVar

import pytest

from iec.efficient.lockstep import run_together, wait_for_all


def traced(name, seen, waits=2):
    def call():
        for turn in range(waits):
            seen.append(f"{name}{turn}")
            wait_for_all()
        seen.append(f"{name}.")

    return call


def test_none_goes_on_before_all_have_come():
    seen = []
    run_together([traced(name, seen) for name in "abc"], lambda: seen.append("|"))
    assert seen == ["a0", "b0", "c0", "|", "a1", "b1", "c1", "|", "a.", "b.", "c."]


def test_calls_that_never_wait_are_made_one_after_the_other():
    seen = []
    run_together([traced(name, seen, 0) for name in "ab"], lambda: seen.append("|"))
    assert seen == ["a.", "b."]


def test_each_call_has_the_callers_context_to_itself():
    variable, seen = ContextVar("variable"), []
    variable.set("outer")

    def call():
        seen.append(variable.get())
        variable.set("inner")
        wait_for_all()

    run_together([call, call], lambda: None)
    assert seen == ["outer", "outer"]
    assert variable.get() == "outer"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["a call", "the meeting"])
def test_an_error_anywhere_ends_all_calls(error, where):
    seen, before = [], threading.active_count()

    def fail():
        raise error("this")

    def failing():
        wait_for_all()
        fail()

    calls = [traced("a", seen), failing if where == "a call" else traced("b", seen), traced("c", seen)]
    with pytest.raises(error, match="this"):
        run_together(calls, fail if where == "the meeting" else lambda: None)
    assert not {"a.", "b.", "c."} & set(seen)
    assert threading.active_count() == before


def test_calls_of_different_length_are_refused():
    with pytest.raises(RuntimeError, match="some have ended while others wait"):
        run_together([traced("a", [], 1), traced("b", [], 2)], lambda: None)
