"""The clock of one sampling run: whoever drives the loop owns it, whatever depends on the step reads it.

Nothing counts calls. A feature cache, a timestep-wise quantizer or an error correction asks `current_clock()`.
"""

from contextvars import ContextVar, Token
from typing import Any, Literal

import torch

_current: ContextVar["Clock | None"] = ContextVar("iec_clock", default=None)


class Clock:
    """One run, made current by `with clock:`; it belongs to the thread (or task) that entered it.

    num_steps: T. step: the index of the current step. sample_steps: the step of each sample, int64 [B], where a batch
    mixes steps, as reconstruction's do; None: all samples are at `step`. pass_index: 0 in the main call, k in the k-th
    correction pass. cache_policy: `decide` lets each cache follow its schedule, `full` forces a full evaluation.
    full: whether the latest evaluation was computed in full; None where no cache had a say.
    evaluated: the cached models that were evaluated in this pass; begin_pass forgets them.
    storage: the run's own memory, in which caches keep their tensors, so that nothing outlives a run.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.step = 0
        self.sample_steps: torch.Tensor | None = None
        self.pass_index = 0
        self.cache_policy: Literal["decide", "full"] = "decide"
        self.full: bool | None = None
        self.storage: dict[Any, Any] = {}
        self.evaluated: set[Any] = set()
        self._tokens: list[Token[Clock | None]] = []

    def advance(self) -> None:
        """Go to the next step's main call."""
        self.step += 1
        self.begin_pass(0)

    def begin_pass(self, index: int) -> None:
        """Enter pass `index` of the current step."""
        self.pass_index = index
        self.full = None
        self.evaluated.clear()

    def record(self, full: bool) -> None:
        """Called by a cache: this evaluation was (or was not) computed in full."""
        self.full = full if self.full is None else self.full and full

    def __enter__(self) -> "Clock":
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *exception: object) -> None:
        _current.reset(self._tokens.pop())


def current_clock() -> Clock:
    """The clock of the run in progress. Raises RuntimeError outside a run."""
    clock = _current.get()
    if clock is None:
        raise RuntimeError(
            "This model depends on the sampling step and was called outside a sampling run: "
            "call it through its pipeline or through iec.sample."
        )
    return clock
