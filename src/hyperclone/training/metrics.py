"""metrics.jsonl: one line for each log, in the order of the run, for people and programs.

    {"step": 40, "tokens": 40960, "loss": 3.91, "lr": 0.00029, "grad_norm": 0.8, "tokens_per_second": 9500.0,
     "mfu": 0.41, "seconds": 4.3}
    {"step": 40, "tokens": 40960, "eval_loss": 3.88, "bits_per_byte": 1.21, "seconds": 4.4}
    {"step": 40, "tokens": 40960, "anatomy": {"read": 0.61, "write": 0.7, "apart": 0.2, "effective_rank": 801.5,
     "read/model.layers.0.mlp.up_proj.weight": 0.62, ...}, "seconds": 4.9}

Losses are means in nats for each predicted token. Bits per byte do not depend on the tokenizer: the held-out loss
over ln 2, times the held-out text's tokens over its bytes. lr is the peak group's (the source's learning rate under
the law). Anatomy, if asked for: how far copies have moved apart (callbacks.py). seconds count steps, evaluation and
saving, over all parts of a run that was resumed; tokens per second count steps only.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperclone.training.token_cache import Corpus

FILE = "metrics.jsonl"


class Metrics:
    """The file being written by a run.

    Attributes:
        latest: of each figure, as the run was taken up.
    """

    def __init__(self, output: Path, *, step: int) -> None:
        """Take up the file at a step: what an interrupted run wrote after its last checkpoint is left out."""
        self._file = output / FILE
        kept = [line for line in read(output) if line["step"] <= step] if step else []
        self.latest = {key: value for line in kept for key, value in line.items() if key != "seconds"}
        self._before = max((line["seconds"] for line in kept), default=0.0)
        self._began = time.monotonic()
        partial = self._file.with_name(f".{FILE}")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self._file)

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        """Append a line; the line with its time."""
        line = {**line, "seconds": round(self._before + time.monotonic() - self._began, 3)}
        with self._file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return line


class Clock:
    """Time spent in steps since it was last read."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self._busy, self._steps = 0.0, 0

    def step(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        self._busy += now - self._mark
        self._mark, self._steps = now, self._steps + 1

    def skip(self) -> None:
        """What happened since the last step was none."""
        self._mark = time.monotonic()

    def rate(self) -> float | None:
        """Steps in a second since the last call; None if there were none."""
        busy, steps = self._busy, self._steps
        self._busy, self._steps = 0.0, 0
        return steps / busy if steps and busy else None


def read(output: Path) -> list[dict[str, Any]]:
    """The lines of a run. A last line that was cut off is left out."""
    return list(_lines(output / FILE))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def bits_per_byte(loss: float, corpus: Corpus) -> float:
    """Bits per byte of text, from nats per token."""
    return loss / math.log(2) * corpus.tokens / corpus.nbytes


def last_loss(place: Path) -> float | None:
    """The last held-out loss of a run; None if it has none."""
    return next((float(line["eval_loss"]) for line in reversed(read(place)) if "eval_loss" in line), None)
