"""What a training that grows its model on the way must be: `grow_at`, and the options that it excludes."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from hyperclone import units
from hyperclone.errors import GrowthError, OptionError, TrainingError
from hyperclone.planning.growth import Growth

if TYPE_CHECKING:
    from hyperclone.training.config import Training

_SPELLED = "a share of --tokens between 0 and 1, such as 0.25, or a number of tokens, such as 2B"
_EXCLUDED = (
    ("receipt", None, "the model starts from random weights, which were not grown"),
    ("branch_from", None, "the clone goes on from the small model"),
    ("streaming", False, "streamed text has an order that depends on the length of a run, and there are two runs"),
    ("sharding", "none", "a sharded checkpoint is grown by `hyperclone grow` alone"),
    ("skip_tokens", None, "the clone skips what the small model has read"),
    ("grown_moments", "auto", "the clone starts from the small model's moments"),
)  # (option, what it must be, why)


def check_growing(training: Training) -> None:
    """Check `grow_at` and what belongs to it.

    Raises:
        TrainingError: no such point of the training, or options that contradict it.
    """
    if training.grow_at is None:
        for name in ("grow_width", "grow"):
            if (value := getattr(training, name)) is not None:
                raise TrainingError("nothing says when the model is to be grown", field=name, found=value,
                                    cure="give --grow-at 0.25, or leave it out")  # fmt: skip
        return
    if not training.from_scratch:
        raise TrainingError(
            "a model that is trained already is grown first, and then trained", field="grow_at",
            found=training.grow_at, cure="hyperclone grow, then hyperclone train; or add --from-scratch",
        )  # fmt: skip
    if training.grow is not None and not isinstance(training.grow, Growth):
        raise TrainingError("not a growth", field="grow", found=training.grow, expected="hyperclone.Growth(...)")
    if training.tokens is None:
        raise TrainingError("what is left after growing is not known without the length of the training",
                            field="tokens", found="none", cure="--tokens 2B")  # fmt: skip
    for name, must, why in _EXCLUDED:
        if (value := getattr(training, name)) != must:
            flag = name.replace("_", "-")
            raise TrainingError(f"a model cannot be grown on the way with --{flag}: {why}", field=name, found=value,
                                cure=f"leave --{flag} or --grow-at out")  # fmt: skip
    share_or_tokens(training.grow_at)
    try:
        _ = training.growth
    except GrowthError as error:
        raise TrainingError(error.problem, field="grow_width", **_said(error)) from None


def share_or_tokens(grow_at: str | float) -> Fraction | int:
    """A point of the training: a share of it (a fraction below 1), or a number of tokens.

    Raises:
        TrainingError: it is neither.
    """
    try:
        share = Fraction(str(grow_at).strip())
    except (ValueError, ZeroDivisionError):
        share = Fraction(1)
    if 0 < share < 1:
        return share
    whole = int(grow_at) if isinstance(grow_at, float) and grow_at.is_integer() else grow_at
    try:
        return units.parse(whole, "grow_at")  # type: ignore[arg-type]
    except OptionError:
        raise TrainingError("no point of the training", field="grow_at", found=grow_at, expected=_SPELLED) from None


def _said(error: GrowthError) -> dict[str, Any]:
    return {name: error.details.get(name) for name in ("found", "expected", "cure")}
