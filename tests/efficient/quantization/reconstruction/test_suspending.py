"""Functions that are suspended where they ask."""

import threading

import pytest
import torch

from iec.efficient.quantization.reconstruction.suspending import Suspended, ask


def test_questions_and_answers_alternate_and_several_go_in_step():
    heard = []

    def function(name):
        def run():
            heard.append((name, ask(f"{name}1")))
            heard.append((name, ask(f"{name}2")))

        return run

    both = [Suspended(function("a")), Suspended(function("b"))]
    assert [one.advance() for one in both] == ["a1", "b1"]
    assert heard == []
    assert [one.advance(i) for i, one in enumerate(both)] == ["a2", "b2"]
    assert heard == [("a", 0), ("b", 1)]
    assert [one.advance(9) for one in both] == [None, None]
    assert heard[2:] == [("a", 9), ("b", 9)]


def test_an_error_reaches_the_one_who_advances():
    def run():
        ask("first")
        raise ValueError("no.")

    one = Suspended(run)
    assert one.advance() == "first"
    with pytest.raises(ValueError, match=r"no\."):
        one.advance()


def test_closing_unwinds_it_and_leaves_no_thread():
    unwound, before = [], threading.active_count()

    def run():
        try:
            ask("first")
        finally:
            unwound.append(True)

    one, never, finished = Suspended(run), Suspended(run), Suspended(lambda: None)
    one.advance()
    assert finished.advance() is None
    for suspended in (one, never, finished):
        suspended.close()
    assert unwound == [True]
    assert threading.active_count() == before


def test_gradients_are_off_where_it_says_so_alone():
    seen = []

    def run():
        with torch.no_grad():
            ask("first")
            seen.append(torch.is_grad_enabled())

    one = Suspended(run)
    one.advance()
    assert torch.is_grad_enabled()
    one.advance()
    assert seen == [False]


def test_nothing_can_be_asked_outside():
    with pytest.raises(RuntimeError, match="outside a suspended function"):
        ask("anything")
