"""What the options of a training must be, beyond their types: ranges, and options that contradict each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hyperclone.errors import TrainingError
from hyperclone.training.growing_checks import check_growing
from hyperclone.training.optimizer_names import OF_COPIES
from hyperclone.units import is_finite

if TYPE_CHECKING:
    from hyperclone.training.config import Training

_RANGES = {
    "lr": (0.0, math.inf),
    "warmup": (0.0, math.inf),
    "min_lr": (0.0, 1.0),
    "decay": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "momentum": (0.0, 1.0),
    "max_grad_norm": (0.0, math.inf),
    "held_out": (0.0, 0.5),
}


def check_training(training: Training) -> None:
    """Check options with each other.

    Raises:
        TrainingError: a value out of its range, or options that contradict each other.
    """
    _check_ranges(training)
    check_growing(training)
    if training.from_scratch and training.grow_at is None:
        _check_from_scratch(training)
    if training.streaming:
        _check_streaming(training)
    for name in ("difference_lr", "source_lr"):
        if (rate := getattr(training, name)) is not None:
            _check_difference_lr(training, name, rate)
    if training.difference_lr is not None and training.source_lr is not None:
        raise TrainingError("the rate of the differences is given already", field="source_lr", found=training.source_lr,
                            cure="leave --source-lr or --difference-lr out")  # fmt: skip


def _check_ranges(training: Training) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(training, name)
        if not (is_finite(value) or value == math.inf) or not least <= value <= most:
            raise TrainingError("out of range", field=name, found=value, expected=f"{least:g} to {most:g}")
    if training.lr == 0 or math.isinf(training.lr) or 1 in (training.beta1, training.beta2, training.momentum):
        raise TrainingError(
            "nothing can be learned with these values",
            field="lr, beta1, beta2, momentum",
            found=f"{training.lr}, {training.beta1}, {training.beta2}, {training.momentum}",
            expected="a finite lr above 0, betas and momentum below 1",
        )
    if training.warmup >= 1 and not (math.isfinite(training.warmup) and training.warmup == int(training.warmup)):
        raise TrainingError(
            "not a number of steps", field="warmup", found=training.warmup, expected="whole steps, or a share below 1"
        )


def _check_from_scratch(training: Training) -> None:
    if training.receipt is not None:
        raise TrainingError("randomly initialized weights were not grown", field="receipt", found=training.receipt,
                            cure="leave --receipt out with --from-scratch")  # fmt: skip
    for field, of_copies, why in (
        ("lr_rule", "scaled", "the scaling rule is for copies of trained weights"),
        ("optimizer", "rotated", "the rotated optimizer compares copies"),
    ):
        if getattr(training, field) == of_copies:
            raise TrainingError(
                f"{why}, and randomly initialized weights are no copies",
                field=field,
                found=of_copies,
                cure=f"leave --{field.replace('_', '-')} out with --from-scratch",
            )


def _check_streaming(training: Training) -> None:
    if training.skipped_tokens:
        raise TrainingError(
            "streamed text has an order that depends on the length of the run, so none of it can be passed over",
            field="skip_tokens", found=training.skip_tokens, cure="leave --streaming or --skip-tokens out",
        )  # fmt: skip
    if training.tokens is None:
        raise TrainingError("how long streamed text is, is not known, so a run needs its length", field="tokens",
                            found="none", cure="--tokens 2B, or leave --streaming out")  # fmt: skip
    if not training.eval_data and training.held_out:
        raise TrainingError(
            "no share of streamed text can be held out: all of it would have to be read first",
            field="held_out",
            found=training.held_out,
            cure="--eval-data PATH for held-out text, or --held-out 0 for none",
        )
    if training.branch_from is not None:
        raise TrainingError("streamed text has an order that depends on the length of the run", field="branch_from",
                            found=training.branch_from, cure="leave --streaming or --branch-from out")  # fmt: skip


def _check_difference_lr(training: Training, name: str, rate: float) -> None:
    if training.optimizer is not None and training.optimizer not in OF_COPIES:
        raise TrainingError(
            "this optimizer does not distinguish differences between copies", field=name, found=rate,
            cure=f"--optimizer rotated or muon, or leave --{name.replace('_', '-')} out",
        )  # fmt: skip
    if not is_finite(rate) or rate < 0:
        raise TrainingError("out of range", field=name, found=rate, expected="0 or more")
