"""How a model was grown: its plan again, from its receipt, or from the sizes of source and output."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.conversion import receipt
from hyperclone.conversion.receipt import Receipt
from hyperclone.errors import GrowthError
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan


def plan_of(
    place: object, told: Receipt | None, output: Checkpoint | None, origin: Checkpoint | None, own: Family | None
) -> Plan:
    """How a model was grown: its tensors with their maps, by the receipt, or by the sizes of source and output."""
    if told is not None:
        # In fp64: the output may have been trained in another type, and every growth can be had in this one.
        return planner.make_plan(
            hub.Headers.from_config(told.source_config, user_family=own or told.family),
            replace(told.growth, dtype="fp64"),
        )
    if origin is None or output is None:
        raise GrowthError(
            "no receipt says how this model was grown", file=Path(str(place)) / receipt.FILE,
            cure="name the source with --against, or put the hyperclone.json of the grown directory here",
        )  # fmt: skip
    return planner.plan_from_sizes(origin, output.config)


def plan_behind(model: Any, grown: str | os.PathLike[str] | Plan | None) -> Plan:
    """How a transformers model in memory was grown.

    Args:
        model: the bare model.
        grown: the grown directory, or a plan; by default the directory that the model was loaded from.

    Raises:
        GrowthError: no receipt.
    """
    if isinstance(grown, Plan):
        return grown
    place = Path(model.name_or_path if grown is None else grown)
    return plan_of(place, receipt.read(place), None, None, None)
