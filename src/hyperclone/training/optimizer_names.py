"""The optimizers of a training by name, and which one is taken when none is asked for. Needs no torch."""

from __future__ import annotations

from typing import Literal

from hyperclone.planning.scaling_rule import LrRule

OptimizerName = Literal["rotated", "adamw", "muon", "plain-muon"]
OF_COPIES: tuple[OptimizerName, ...] = ("rotated", "muon")  # these tell differences between copies apart
# What can start from a grown optimizer state of each kind; none from SGD's.
STARTS_FROM: dict[str, tuple[OptimizerName, ...]] = {
    "adamw": ("adamw", "rotated", "muon", "plain-muon"),
    "muon": ("muon", "plain-muon"),
}


def usual_optimizer(*, matrices_known: bool, first_copy_moments: bool, lr_rule: LrRule | None) -> OptimizerName:
    """The optimizer when none is asked for: what was best in docs/findings.md, for clones and what they compare with.

    Args:
        matrices_known: the architecture is known, so that Muon can be told its matrices.
        first_copy_moments: it starts from moments of the first copies only, which make copies diverge under AdamW.
        lr_rule: as asked for; "uniform" is the published recipe, whose optimizer is AdamW.
    """
    return "muon" if matrices_known and not first_copy_moments and lr_rule != "uniform" else "adamw"
