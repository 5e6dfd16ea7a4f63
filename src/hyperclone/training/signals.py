"""SIGTERM and SIGINT finish the step, save a checkpoint and stop the run. A second signal has its usual effect.

A signal can reach the processes of a run at different steps, or only some of them. So they agree on it after each
step, by an all-reduce of one number.
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
    """Stops a Trainer after the step in which a signal arrived. To be used as a context, which restores the handlers.

    Attributes:
        signal: its number; 0 while there is none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._handlers = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for each, handler in self._handlers.items():
            signal.signal(each, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if any process has had a signal."""
        if args.world_size > 1:
            received = torch.tensor(self.signal, device=args.device)
            torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
            self.signal = int(received)
        if self.signal:
            control.should_log = control.should_save = control.should_training_stop = True
