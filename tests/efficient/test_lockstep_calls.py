"""Calls in lockstep: one at a time, all as often, and no thread that stays behind."""

import contextvars
import threading

import pytest
import torch

from iec.efficient.lockstep import run_together, wait_for_all


@pytest.fixture(autouse=True)
def _no_thread_stays_alive():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def pausing(name, times, events, error=None):
    def call():
        for turn in range(times):
            events.append((name, turn))
            wait_for_all()
        events.append((name, "end"))
        if error is not None:
            raise error

    return call


@pytest.mark.parametrize("calls", [1, 2, 5])
@pytest.mark.parametrize("times", [0, 1, 3])
def test_every_round_waits_for_all(calls, times):
    events = []
    run_together([pausing(name, times, events) for name in range(calls)], lambda: events.append("round"))
    expected = []
    for turn in range(times):
        expected += [(name, turn) for name in range(calls)] + ["round"]
    assert events == expected + [(name, "end") for name in range(calls)]


def test_nothing_to_call():
    run_together([], lambda: None)


@pytest.mark.parametrize("error", [ZeroDivisionError("a"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_what_a_call_raises_is_raised_and_the_others_end(who, error):
    events, ended = [], []

    def watched(name):
        def call():
            try:
                pausing(name, 2, events, error if name == who else None)()
            finally:
                ended.append(name)

        return call

    with pytest.raises(type(error)) as raised:
        run_together([watched(name) for name in range(3)], lambda: None)
    assert raised.value is error
    assert sorted(ended) == [0, 1, 2]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_a_round_raises_is_raised_and_the_calls_end(error):
    ended = []

    def call():
        try:
            wait_for_all()
        finally:
            ended.append(True)

    def on_round():
        raise error

    with pytest.raises(error):
        run_together([call, call], on_round)
    assert ended == [True, True]


def test_an_error_before_the_first_pause_leaves_the_others_unbegun():
    events = []

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_together([fail, pausing("other", 1, events)], lambda: None)
    assert events == []


@pytest.mark.parametrize("times", [(1, 2), (2, 1), (0, 1)])
def test_calls_of_different_length_are_refused(times):
    with pytest.raises(RuntimeError, match="cannot be made together"):
        run_together([pausing(name, count, []) for name, count in enumerate(times)], lambda: None)


def test_only_one_call_runs_at_a_time():
    running, most = [], []

    def call():
        for _ in range(20):
            running.append(True)
            most.append(len(running))
            sum(range(1000))
            running.pop()
            wait_for_all()

    run_together([call] * 4, lambda: most.append(len(running)))
    assert max(most) == 1


def test_a_call_sees_the_context_of_its_maker_and_keeps_its_own():
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("made")
    seen = []

    def call(name):
        def work():
            seen.append(variable.get())
            variable.set(name)
            wait_for_all()
            seen.append(variable.get())

        return work

    run_together([call("first"), call("second")], lambda: None)
    assert seen == ["made", "made", "first", "second"]
    assert variable.get() == "made"


def test_nothing_is_differentiated():
    seen = []
    run_together([lambda: seen.append(torch.is_grad_enabled())], lambda: None)
    assert seen == [False]
