"""The clock of a run: current only inside it, nested, one per thread, and gone afterwards."""

import gc
import threading
import weakref

import pytest
import torch

import iec
from iec.method import Clock, IECConfig, current_clock

from .denoisers import Cached, Recorded, smooth


def test_outside_a_run_it_says_what_to_do():
    with pytest.raises(
        RuntimeError, match=r"outside a sampling run: call it through its pipeline or through iec\.sample"
    ):
        current_clock()


def test_inside_it_is_the_one_entered_and_outside_it_is_gone():
    clock = Clock(3)
    with clock as entered:
        assert entered is clock
        assert current_clock() is clock
    with pytest.raises(RuntimeError):
        current_clock()


def test_it_is_gone_after_an_exception():
    with pytest.raises(ZeroDivisionError), Clock(3):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError):
        current_clock()


def test_nested_runs_restore_the_outer_clock():
    outer, inner = Clock(1), Clock(2)
    with outer:
        with inner:
            assert current_clock() is inner
            with outer:
                assert current_clock() is outer
            assert current_clock() is inner
        assert current_clock() is outer


def test_it_counts_steps_and_passes_only_when_told():
    clock = Clock(5)
    assert (clock.num_steps, clock.step, clock.pass_index, clock.full) == (5, 0, 0, None)
    clock.begin_pass(2)
    assert (clock.step, clock.pass_index) == (0, 2)
    clock.advance()
    assert (clock.step, clock.pass_index) == (1, 0)


@pytest.mark.parametrize(
    ("reports", "full"), [([], None), ([True], True), ([False], False), ([True, False], False), ([False, True], False)]
)
def test_an_evaluation_is_full_when_every_cache_says_so(reports, full):
    clock = Clock(1)
    for report in reports:
        clock.record(report)
    assert clock.full is full
    clock.begin_pass(1)
    assert clock.full is None


def test_another_thread_does_not_see_it():
    seen = []

    def look():
        try:
            seen.append(current_clock())
        except RuntimeError:
            seen.append(None)

    with Clock(1):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [None]


def test_two_runs_at_once_keep_their_own_clocks_and_caches():
    barrier = threading.Barrier(2, timeout=60)
    # 6 steps of 2 passes beside 4 steps of 3: 12 evaluations in both, each made side by side with the other run's.
    settings = {"a": (6, 1, 2), "b": (4, 2, 3)}
    noise = {name: torch.randn(2, 3, generator=torch.Generator().manual_seed(ord(name))) for name in settings}
    results, clocks = {}, {"a": [], "b": []}

    def sample(name, denoiser):
        num_steps, k, _ = settings[name]
        config = IECConfig(num_iterations=k, tolerance=0.0, cached_steps=True)
        return iec.sample(denoiser, noise[name], num_steps, config=config)

    def run(name):
        cached = Cached(settings[name][2])

        def denoiser(x, t):
            barrier.wait()
            clocks[name].append(current_clock())
            eps = cached(x, t)
            barrier.wait()
            return eps

        results[name] = sample(name, denoiser)

    threads = [threading.Thread(target=run, args=(name,)) for name in settings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (num_steps, _, interval) in settings.items():
        assert len(clocks[name]) == 12
        assert len(set(map(id, clocks[name]))) == 1
        assert clocks[name][0].num_steps == num_steps
        assert torch.equal(results[name], sample(name, Cached(interval)))


def test_a_denoiser_that_samples_inside_gets_its_own_clock_back():
    outer = []

    def denoiser(x, t):
        outer.append(current_clock())
        iec.sample(smooth, x, 3)
        assert current_clock() is outer[0]
        return smooth(x, t)

    iec.sample(denoiser, torch.ones(1, 2), 2)
    assert len(outer) == 4
    assert outer[0].num_steps == 2


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_survives_a_run(fails):
    alive = []

    def denoiser(x, t):
        clock = current_clock()
        eps = Cached(2)(x, t)
        alive.extend([weakref.ref(clock), weakref.ref(clock.storage["deep"])])
        if fails and clock.step == 2:
            raise ZeroDivisionError
        return eps

    if fails:
        with pytest.raises(ZeroDivisionError):
            iec.sample(denoiser, torch.ones(1, 2), 4)
    else:
        iec.sample(denoiser, torch.ones(1, 2), 4)
    gc.collect()
    assert alive
    assert [reference() for reference in alive] == [None] * len(alive)
    with pytest.raises(RuntimeError):
        current_clock()


def test_the_denoiser_sees_every_step_and_pass_with_the_timestep_of_the_step():
    recorded = Recorded(smooth)
    config = IECConfig(num_iterations=2, tolerance=0.0, steps=[0, 2])
    iec.sample(recorded, torch.ones(1, 2), 3, spacing="linspace", config=config)
    seen = [call[:3] for call in recorded.calls]
    assert seen == [(0, 0, 999), (0, 1, 999), (0, 2, 999), (1, 0, 500), (2, 0, 0), (2, 1, 0), (2, 2, 0)]
