import pytest
import torch
from tiny_models import tiny_net

from iec.evaluation.memory import PeakMemory


def peak(megabytes):
    with PeakMemory(tiny_net()) as memory:
        torch.ones(megabytes * 250_000).sum()
    if memory.megabytes is None:
        pytest.skip("this system does not tell the peak memory of a process")
    return memory.megabytes


def test_the_peak_counts_what_was_held_only_for_a_moment_and_not_what_came_before():
    kept = torch.ones(25_000_000)
    assert 190 < peak(200) < 230
    assert peak(1) < 30
    assert 190 < peak(200) < 230
    del kept


def test_a_system_that_does_not_tell_gives_none(monkeypatch, tmp_path):
    monkeypatch.setattr("iec.evaluation.memory._RESET", tmp_path / "nowhere" / "clear_refs")
    with PeakMemory(tiny_net()) as memory:
        pass
    assert memory.megabytes is None
