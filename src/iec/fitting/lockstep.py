"""Several calls that wait for one another: each runs until it pauses, one at a time, and all pause equally often."""

import contextvars
import threading
from collections.abc import Callable, Sequence

import torch

Pause = Callable[[], None]


class _Abandoned(BaseException):
    """Unwinds a call that will not go on."""


class _Worker:
    """One call in a thread of its own, which runs only between `resume` and its next pause."""

    def __init__(self, call: Callable[[Pause], None]) -> None:
        self.error: BaseException | None = None
        self.ended = False
        self._abandoned = False
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work, call), daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Run until the call pauses or ends."""
        self._go.release()
        self._paused.acquire()

    def abandon(self) -> None:
        """End the call where it pauses."""
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def _work(self, call: Callable[[Pause], None]) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():
                    call(self._pause)
        except _Abandoned:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self._paused.release()


def run_in_lockstep(calls: Sequence[Callable[[Pause], None]], on_round: Callable[[], None]) -> None:
    """Make all calls at once; `on_round` runs whenever each of them has called its `pause`, and then they go on.

    What a call or `on_round` raises is raised here, after all calls have ended. Raises RuntimeError where some calls
    end while others still pause.
    """
    workers = [_Worker(call) for call in calls]
    try:
        while True:
            for worker in workers:
                worker.resume()
                if worker.error is not None:
                    raise worker.error
            ended = [worker.ended for worker in workers]
            if all(ended):
                return
            if any(ended):
                raise RuntimeError("The calls take different numbers of steps, so they cannot be fitted together.")
            on_round()
    finally:
        for worker in workers:
            if not worker.ended:
                worker.abandon()
