"""The learning rate that a source was trained with, from records beside it; the differences' rate follows from it.

Differences between copies start untrained, as random weights do, so they want about the rate of a model of the grown
size that starts from random weights. The best such rate falls with width: about as one over the hidden size under
Adam (muP, arXiv 2203.03466). So it is the source's, times old over new hidden size. In docs/findings.md the best rates
that were found by search lie within 1.5 times of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.errors import HypercloneError
from hyperclone.io.files import exists, read_json
from hyperclone.planning.plan import Plan
from hyperclone.units import is_finite

_OURS, _TRAINERS = "training.json", "trainer_state.json"


@dataclass(frozen=True)
class SourceRate:
    """A peak learning rate, and the file that says so."""

    lr: float
    file: str


def source_rate(directory: Path) -> SourceRate | None:
    """The peak rate with which a model was trained from random weights; None where no record says it.

    Args:
        directory: of the model: an output of `hyperclone train --from-scratch`, or a checkpoint of transformers'
            Trainer (whose record does not say what it started from).
    """
    for file, rate_of in ((_OURS, _of_our_record), (_TRAINERS, _of_trainers)):
        if exists(directory / file):
            try:
                lr = rate_of(read_json(directory / file))
            except (HypercloneError, AttributeError, TypeError):  # it is not ours to check
                continue
            if is_finite(lr) and lr > 0:
                return SourceRate(float(lr), file)
    return None


def _of_our_record(record: dict[str, Any]) -> Any:
    curve: dict[str, Any] = record.get("curve", {})
    return curve.get("lr") if curve.get("from_scratch") is True else None


def _of_trainers(record: dict[str, Any]) -> Any:
    rates = [entry.get("learning_rate") for entry in record.get("log_history", [])]
    return max((rate for rate in rates if is_finite(rate)), default=None)


def difference_lr(source_lr: float, old_hidden: int, new_hidden: int) -> float:
    """The rate of the differences: the source's peak rate times old over new hidden size."""
    return source_lr * old_hidden / new_hidden


def note_on_rate(rate: SourceRate | None, plan: Plan) -> tuple[str, ...]:
    """What a plan says of it: one sentence, or none."""
    old, new = plan.sizes["hidden"]
    if rate is None or not plan.growth.wider:
        return ()
    return (
        f"The source was trained with a peak learning rate of {rate.lr:g} ({rate.file}), so differences between copies "
        f"are trained with {difference_lr(rate.lr, old, new):.2g}" + (f", that times {old}/{new}" if new > old else "")
        + ", unless --difference-lr says otherwise.",
    )  # fmt: skip
