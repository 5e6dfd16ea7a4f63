"""SIGTERM and SIGINT: finish the step, save a checkpoint, stop. A second signal does what it always does.

A signal reaches the processes of a run at different steps, or only some of them, so they agree on it after each step:
one number is reduced over all.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(TrainerCallback):  # type: ignore[misc]
    """Stops a Trainer after the step in which a signal came.

    Attributes:
        signal: its number, 0 while none has come.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:
            noted = torch.tensor(self.signal, device=args.device)
            torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX)
            self.signal = int(noted)
        if self.signal:
            control.should_log = control.should_save = control.should_training_stop = True
