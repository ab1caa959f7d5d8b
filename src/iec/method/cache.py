"""Feature caches around a correction pass: the protocol they implement, and the three policies written once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch

from iec.method.clock import Clock
from iec.method.config import CachePolicy
from iec.method.summary import StepRecord

Result = TypeVar("Result")


class Cache(Protocol):
    """A feature cache whose state can be read and put back.

    has_history: whether its state is more than the features of the latest full evaluation (counters, differences
        between steps), so that a correction pass has to start from the state that the main call found.
    """

    @property
    def has_history(self) -> bool: ...

    def snapshot(self) -> Any:
        """The cache's state; tensors by reference, since caches replace tensors and never write into them."""

    def restore(self, state: Any, samples: torch.Tensor | None = None) -> None:
        """Put `state` back: all of it, or only the rows of `samples` (bool [B])."""

    def forced_full(self) -> AbstractContextManager[None]:
        """While entered, every evaluation is computed in full."""

    def was_full(self) -> bool | None:
        """Whether the latest evaluation was computed in full; None where the cache had no say."""


class RunCache:
    """Every cache that keeps its tensors in the run's own storage: ours all do."""

    has_history = False

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def snapshot(self) -> dict[Any, torch.Tensor]:
        return dict(self.clock.storage)

    def restore(self, state: dict[Any, torch.Tensor], samples: torch.Tensor | None = None) -> None:
        storage = self.clock.storage
        if samples is None:
            storage.clear()
            storage.update(state)
            return
        for key, old in state.items():
            storage[key] = replace_rows(storage[key], old, samples)

    @contextmanager
    def _forced_full(self) -> Any:
        before, self.clock.cache_policy = self.clock.cache_policy, "full"
        try:
            yield
        finally:
            self.clock.cache_policy = before

    def forced_full(self) -> AbstractContextManager[None]:
        return self._forced_full()

    def was_full(self) -> bool | None:
        return self.clock.full


class StepCaches:
    """The caches during one step: made before its main call, asked for each correction pass.

    A pass takes the main call's place: a cache with a history goes back to the state that the main call found.
    """

    def __init__(self, caches: Sequence[Cache], policy: CachePolicy) -> None:
        self.caches = caches
        self.policy = policy
        # None where nobody goes back to it: holding it would keep the older features alive.
        self.before = [cache.snapshot() if policy == "reuse" or cache.has_history else None for cache in caches]
        self.after_main = self.latest = self.before

    def main_done(self) -> None:
        """Note the state that the main call left."""
        self.after_main = self.latest = self._snapshot()

    def was_full(self) -> bool:
        """Whether the latest evaluation was computed in full."""
        return was_full(self.caches)

    def evaluate(self, predict: Callable[[], Result]) -> Result:
        """Run one correction pass under the policy."""
        self._restore(self.before)
        try:
            with ExitStack() as stack:
                if self.policy != "reuse":
                    for cache in self.caches:
                        stack.enter_context(cache.forced_full())
                return predict()
        finally:
            if self.policy != "refresh":
                self._restore(self.latest)

    def counted(
        self, predict: Callable[[torch.Tensor], torch.Tensor], clock: Clock, record: StepRecord
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """`predict` as the step's correction passes: each under the policy, on the clock, and counted."""

        def one_pass(x: torch.Tensor) -> torch.Tensor:
            clock.begin_pass(clock.pass_index + 1)
            eps = self.evaluate(lambda: predict(x))
            record.count(self.was_full())
            return eps

        return one_pass

    def settle(self, kept: torch.Tensor, failed: torch.Tensor) -> None:
        """After a pass in `refresh` mode, take back the features of samples whose update was not `kept` (bool [B]).

        A sample that `failed` fell back to the uncorrected state, and so do its features.
        """
        if self.policy != "refresh":
            return
        if not kept.all():
            self._restore(self.latest, ~kept)
            self._restore(self.after_main, failed)
        self.latest = self._snapshot()

    def _snapshot(self) -> list[Any]:
        return [cache.snapshot() for cache in self.caches]

    def _restore(self, states: list[Any], samples: torch.Tensor | None = None) -> None:
        for cache, state in zip(self.caches, states, strict=True):
            if state is not None:
                cache.restore(state, samples)


def was_full(caches: Sequence[Cache]) -> bool:
    """Whether the latest evaluation was computed in full (without a cache it always is)."""
    return all(cache.was_full() is not False for cache in caches)


def replace_rows(new: torch.Tensor, old: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """`new` with the rows of `samples` (bool [B]) from `old`; both [P B, ...].

    Classifier-free guidance stacks P = 2 parts, [unconditional; conditional]: the same samples in every part.
    """
    rows = samples.to(new.device).repeat(len(new) // len(samples)).view(-1, *[1] * (new.dim() - 1))
    return torch.where(rows, old, new)
