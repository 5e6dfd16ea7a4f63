"""metrics.jsonl: one line for each measurement, in the order of the run, for people and programs.

    {"step": 40, "tokens": 40960, "loss": 3.91, "lr": 0.00029, "grad_norm": 0.8, "tokens_per_second": 9500.0,
     "mfu": 0.41, "seconds": 4.3}
    {"step": 40, "tokens": 40960, "eval_loss": 3.88, "bits_per_byte": 1.21, "seconds": 4.4}
    {"step": 40, "tokens": 40960, "anatomy": {"read": 0.61, "write": 0.7, "divergence": 0.2, "effective_rank": 801.5,
     "read/model.layers.0.mlp.up_proj.weight": 0.62, ...}, "seconds": 4.9}

Losses are means in nats over the predicted tokens. Bits per byte do not depend on the tokenizer: the held-out loss
over ln 2, times the held-out text's tokens over its bytes. lr is that of the param group with the highest rate (the
source's learning rate, if the scaling rule is used). Anatomy, if asked for: how far copies have diverged
(anatomy_callback.py). seconds count steps, evaluation and saving, over all parts of a run that was resumed; tokens
per second count steps only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperclone.io.files import write_text
from hyperclone.training.token_cache import TextSize

FILE = "metrics.jsonl"


class MetricsFile:
    """The file that a run is writing.

    Attributes:
        latest: the latest of each figure that the file had when it was opened, but for the time.
    """

    def __init__(self, output: Path, *, step: int, before: Path | None = None) -> None:
        """Open the file at a step: what was written after that is removed.

        Args:
            output: directory of the run.
            step: of the checkpoint that it goes on from; 0 for none.
            before: directory of the run whose checkpoint that is, which this one may have branched off from; by default
                its own.
        """
        self._file = output / FILE
        kept = [line for line in read(before or output) if line["step"] <= step] if step else []
        self.latest = {key: value for line in kept for key, value in line.items() if key != "seconds"}
        self._seconds_before = max((line["seconds"] for line in kept), default=0.0)
        self._opened = time.monotonic()
        write_text(self._file, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        """Append a line, and return it with its time."""
        line = {**line, "seconds": round(self._seconds_before + time.monotonic() - self._opened, 3)}
        with self._file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return line


def read(output: Path) -> list[dict[str, Any]]:
    """The lines of a run. A last line that is truncated is left out."""
    return list(_lines(output / FILE))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def bits_per_byte(loss: float, text: TextSize) -> float:
    """Bits per byte of text, from nats per token."""
    return loss / math.log(2) * text.tokens / text.nbytes


def last_loss(output: Path) -> float | None:
    """The last held-out loss of a run; None if it has none."""
    return next((float(line["eval_loss"]) for line in reversed(read(output)) if "eval_loss" in line), None)
