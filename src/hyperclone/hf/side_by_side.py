"""Two models run at the same time, each in a thread of its own with half of torch's threads.

This helps in types that torch multiplies in a single thread (slow_types.py). In others torch already uses every core,
and the last bits of a product may depend on the number of its threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import nn

from hyperclone.hf.models import quiet

A = TypeVar("A")
B = TypeVar("B")


def run(first: Callable[[], A], second: Callable[[], B], *, module: nn.Module) -> tuple[A, B]:
    """What both return; `first` runs in this thread.

    Neither may load a model: transformers changes settings of the whole process meanwhile.

    Args:
        first, second: what to run.
        module: which `second` runs; it ends at the next of its submodules if `first` fails or is interrupted.

    Raises:
        Exception: what `first` raised, else what `second` did.
    """
    threads = torch.get_num_threads()
    half = max(1, threads // 2)
    ended = threading.Event()
    result: Future[B] = Future()

    def check(*_: Any) -> None:
        if ended.is_set():
            raise _Ended

    def work() -> None:
        torch.set_num_threads(half)
        try:
            result.set_result(second())
        except BaseException as error:  # belongs to whoever waits for the result
            result.set_exception(error)

    hooks = [part.register_forward_pre_hook(check) for part in module.modules()]
    thread = threading.Thread(target=work, daemon=True)
    with quiet():  # around both, since each restores the process's settings that it has found
        try:
            torch.set_num_threads(half)
            thread.start()
            return first(), result.result()
        finally:
            ended.set()
            thread.join()
            torch.set_num_threads(threads)
            for hook in hooks:
                hook.remove()


class _Ended(BaseException):
    """Ends a run whose result nobody waits for; no `except Exception` on the way stops it."""
