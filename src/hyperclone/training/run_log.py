"""What a run measures: each measurement becomes an event for whoever watches, and a line of metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from hyperclone.training.events import (
    AnatomyMeasured,
    Event,
    HeldOutEvaluated,
    LossLogged,
    TasksEvaluated,
    Watch,
)
from hyperclone.training.metrics import MetricsFile, bits_per_byte
from hyperclone.training.token_cache import TextSize

_Measured = TypeVar("_Measured", LossLogged, HeldOutEvaluated, AnatomyMeasured, TasksEvaluated)


class StepClock:
    """Time that was spent in steps since the clock was last read."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self._seconds, self._steps = 0.0, 0

    def step(self) -> None:
        """A step has ended: the time since the last call of `step` or `skip` was spent in it."""
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark, self._steps = now, self._steps + 1

    def skip(self) -> None:
        """The time since the last call of `step` or `skip` was spent on something else."""
        self._mark = time.monotonic()

    def rate(self) -> float | None:
        """Steps per second since the last call of `rate`; None if there were none."""
        seconds, steps = self._seconds, self._steps
        self._seconds, self._steps = 0.0, 0
        return steps / seconds if steps and seconds else None


class RunLog:
    """Reports a run.

    Attributes:
        latest: the latest of each figure, by its name in metrics.jsonl.
        clock: counts the time of steps, for tokens per second.
    """

    def __init__(
        self,
        *,
        batch_tokens: int,
        flops_per_token: float,
        peak_flops: float | None,
        held_out: TextSize | None,
        metrics: MetricsFile | None,
        watch: Watch,
    ) -> None:
        """Nothing is reported yet.

        Args:
            batch_tokens: tokens of a step, over all processes.
            flops_per_token: floating-point operations for training on one token.
            peak_flops: FLOP/s of all devices together; None where that is not known.
            held_out: the text that held-out losses are measured on, for bits per byte; None for none.
            metrics: the file to write; None in all processes but the main one.
            watch: called with every event.
        """
        self._batch_tokens, self._held_out = batch_tokens, held_out
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._metrics, self._watch = metrics, watch
        self.latest: dict[str, Any] = {} if metrics is None else dict(metrics.latest)
        self.clock = StepClock()

    def tell(self, event: Event) -> None:
        """Pass on an event that is no measurement."""
        self._watch(event)

    def loss(self, step: int, *, loss: float, lr: float, grad_norm: float | None) -> LossLogged:
        """Report the training loss, with the speed since the last call."""
        rate = self.clock.rate()
        speed = None if rate is None else rate * self._batch_tokens
        mfu = None
        if speed is not None and self._peak_flops is not None:
            mfu = round(speed * self._flops_per_token / self._peak_flops, 4)
        measured = LossLogged(
            **self._at(step), loss=loss, lr=lr, grad_norm=grad_norm,
            tokens_per_second=None if speed is None else round(speed, 1), mfu=mfu,
        )  # fmt: skip
        return self._record(measured)

    def held_out_loss(self, step: int, loss: float) -> HeldOutEvaluated:
        """Report the held-out loss."""
        assert self._held_out is not None
        bits = bits_per_byte(loss, self._held_out)
        return self._record(HeldOutEvaluated(**self._at(step), eval_loss=loss, bits_per_byte=bits))

    def anatomy(self, step: int, figures: Mapping[str, float]) -> None:
        """Report how far copies have diverged. The time that it took is not counted as a step's."""
        self._record(AnatomyMeasured(**self._at(step), anatomy=dict(figures)))
        self.clock.skip()

    def tasks(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Report results of tasks. The time that they took is not counted as a step's."""
        self._record(TasksEvaluated(**self._at(step), tasks={task: dict(values) for task, values in metrics.items()}))
        self.clock.skip()

    def _at(self, step: int) -> dict[str, int]:
        return {"step": step, "tokens": step * self._batch_tokens}

    def _record(self, measured: _Measured) -> _Measured:
        line = asdict(measured)
        self.latest |= line
        if self._metrics is not None:
            self._metrics.add(line)
        self.tell(measured)
        return measured
