"""Ctrl-C, SIGTERM and a terminal that goes away end a command with one line, and everything temporary is cleared up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal has ended the command. No KeyboardInterrupt, which typer would turn into an exit without a word.

    Attributes:
        exit_code: 128 and the signal's number, as shells do: 130 for Ctrl-C, 143 for SIGTERM.
        kept: one sentence, what there is now. Whoever knows more says it.
    """

    def __init__(self, number: int) -> None:
        """Args: number: of the signal."""
        self.exit_code = 128 + number
        self.kept = "Nothing was damaged."
        super().__init__(number)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, the signals raise `Stopped` in the main thread; one that is ignored (nohup) stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        before = {number: handler for number in _SIGNALS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def says_what_is_kept(target: Path) -> Iterator[None]:
    """A command that builds a directory: when it is stopped, it says whether finished files are kept."""
    from hyperclone.io.destination import beside

    try:
        yield
    except Stopped as stop:
        partial, _ = beside(target.resolve())  # as Destination does: a link itself stays
        stop.kept = f"{target} was not touched" + (
            f"; finished files are kept in {partial.name} beside it." if partial.exists() else ", and nothing is kept."
        )
        raise
