"""A function that is suspended wherever it asks a question, and runs on when it is answered.

A forward pass cannot be a generator, since it asks from deep inside other people's modules; it has a thread of its own
instead. Only one runs at a time: the asker waits while the one who answers works, and the other way round.
"""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any

_current: ContextVar["Suspended | None"] = ContextVar("iec_suspended", default=None)


class Suspended:
    """`function`, not begun yet; inside it, `ask` suspends."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._events: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def advance(self, answer: Any = None) -> Any:
        """Run to the next question and return it, None at the end. Raises what the function raises."""
        self._answers.put(answer)
        question, error = self._events.get()
        if error is not None:
            raise error
        return question

    def close(self) -> None:
        """End it where it is suspended; a finished one is left alone."""
        self._answers.put(_Closed())
        self._thread.join()

    def _work(self) -> None:
        _current.set(self)  # a thread has a context of its own
        try:
            self._wait()
            self._function()
            self._events.put((None, None))
        except _Closed:
            pass
        except BaseException as error:
            self._events.put((None, error))

    def _ask(self, question: Any) -> Any:
        self._events.put((question, None))
        return self._wait()

    def _wait(self) -> Any:
        answer = self._answers.get()
        if isinstance(answer, _Closed):
            raise answer
        return answer


class _Closed(BaseException):
    """Unwinds a suspended function."""


def ask(question: Any) -> Any:
    """Suspend the function that calls this, and return the answer. Raises RuntimeError outside of one."""
    suspended = _current.get()
    if suspended is None:
        raise RuntimeError("Nothing can be asked outside a suspended function.")
    return suspended._ask(question)
