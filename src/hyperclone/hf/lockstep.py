"""Calls in lockstep: each has a thread of its own, one of them moves at a time, and all wait for one another at gates.

So a model whose layers do not fit in memory together takes several inputs through a layer while it is there, although
each input goes through the model's ordinary forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Lockstep:
    """Runs functions that stop at numbered gates."""

    def __init__(self, open_gate: Callable[[int], None]) -> None:
        """Nothing runs yet.

        Args:
            open_gate: called with a gate's number before functions pass it.
        """
        self._open_gate = open_gate

    def gate(self, number: int) -> None:
        """To be called by a function where it must stop. Outside of `run` the gate simply opens."""
        call = threading.current_thread()
        if isinstance(call, _Call):
            call.stop(number)
        else:
            self._open_gate(number)

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """What the functions return. A gate opens once for all that have stopped there.

        Raises:
            Exception: what a function raised; the others are ended at the gates where they are.
        """
        results: dict[int, T] = {}

        def keep(index: int, function: Callable[[], T]) -> None:
            results[index] = function()

        calls = [_Call(keep, index, function) for index, function in enumerate(functions)]
        try:
            for call in calls:
                call.move()
            while waiting := [call for call in calls if call.gate is not None]:
                number = waiting[0].gate
                assert number is not None
                self._open_gate(number)
                for call in waiting:
                    if call.gate == number:
                        call.move()
        finally:
            for call in calls:
                call.end()
        return [results[index] for index in range(len(calls))]


class _Ended(BaseException):
    """Ends a function at its gate; no `except Exception` on the way stops it."""


class _Call(threading.Thread):
    """A function that runs only during `move`.

    Attributes:
        gate: where it has stopped; None before it starts and after it has returned.
    """

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        super().__init__(daemon=True)
        self.gate: int | None = None
        self._function, self._arguments = function, arguments
        self._error: BaseException | None = None
        self._must_end = False
        self._may_move, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.start()

    def move(self) -> None:
        """Let it run to its next gate or its end, and raise what it raises."""
        self._may_move.release()
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let it run to its next gate at most."""
        self._must_end = True
        self._may_move.release()
        self.join()

    def stop(self, gate: int) -> None:
        """In its own thread: wait for the next `move`."""
        self.gate = gate
        self._has_stopped.release()
        self._wait()

    def run(self) -> None:
        """The thread."""
        try:
            self._wait()
            self._function(*self._arguments)
        except _Ended:
            pass
        except BaseException as error:  # belongs to whoever waits in `move`
            self._error = error
        self.gate = None
        self._has_stopped.release()

    def _wait(self) -> None:
        self._may_move.acquire()
        if self._must_end:
            raise _Ended
