"""Several calls made together: each runs alone until it waits for the others, and goes on when all have come there.

Every call has a thread and a copy of the caller's context variables, but only one of them runs at a time.
"""

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context

import torch

_current: ContextVar["_Turn"] = ContextVar("iec_turn")


def run_together(calls: Sequence[Callable[[], None]], on_meeting: Callable[[], None]) -> None:
    """Make all calls, without gradients; `on_meeting()` whenever all of them wait.

    What a call or `on_meeting` raises ends them all and is raised here. Raises RuntimeError where some calls wait and
    others have ended.
    """
    turns = [_Turn(call) for call in calls]
    try:
        going = turns
        while going:
            for turn in going:
                turn.go_on()
            going = [turn for turn in turns if turn.waits]
            if going and len(going) < len(turns):
                raise RuntimeError("These calls cannot be made together: some have ended while others wait for them.")
            if going:
                on_meeting()
    finally:
        for turn in turns:
            turn.stop()


def wait_for_all() -> None:
    """Within one of the calls: wait until all of them have come here, and `on_meeting` has returned."""
    _current.get().wait()


class _Stopped(BaseException):
    """Leaves a call that is not to go on."""


class _Turn:
    """One call in its thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.waits = False
        self._call = call
        self._error: BaseException | None = None
        self._stopped = False
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        context = copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run), daemon=True)

    def go_on(self) -> None:
        """Let it run until it waits or ends; raise what it raised."""
        self.waits = False
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._came.acquire()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Called by the thread itself."""
        self.waits = True
        self._came.release()
        self._go.acquire()
        if self._stopped:
            raise _Stopped

    def stop(self) -> None:
        """End it where it waits, or will wait next, and forget it."""
        if self._thread.ident is None:
            return
        self._stopped = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        _current.set(self)
        try:
            with torch.no_grad():  # a thread begins with gradients, whatever its maker has
                self._call()
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.waits = False
            self._came.release()
