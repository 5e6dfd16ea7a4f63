"""Callbacks for transformers' Trainer that know about copies."""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hyperclone import anatomy, receipt
from hyperclone.anatomy import Measured
from hyperclone.anatomy_weights import mean
from hyperclone.errors import GrowthError
from hyperclone.plans import Plan
from hyperclone.training import names

_LARGEST = 2048  # shorter side of matrices whose effective rank is computed during training


class AnatomyCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Logs, at every evaluation and at the start, how far the copies in some matrices have moved apart.

    Entries go to `state.log_history` (and so to trainer_state.json), to `history`, and to `log` where one is given.
    Keys: anatomy/read and anatomy/write (symmetry between copies of inputs and of outputs), anatomy/apart and
    anatomy/effective_rank, means over the matrices; and anatomy/read/NAME for each.
    """

    def __init__(
        self,
        *,
        grown: str | os.PathLike[str] | Plan | None = None,
        tensors: str = "*",
        layers: int = 3,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """What to measure.

        Args:
            grown: the grown directory with its receipt, or a plan; by default where the model was loaded from.
            tensors: only names (on disk) that match this pattern.
            layers: how many layers are measured, evenly spread; what stands outside of layers is not.
            log: also given every entry (`trainer.log`).
        """
        self.grown, self.pattern, self.layers, self.log = grown, tensors, layers, log
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first entry."""
        self._measure(state, kwargs["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An entry for each evaluation."""
        if not self.history or self.history[-1]["step"] != state.global_step:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        found = measure_model(model, grown=self.grown, tensors=self.pattern, layers=self.layers)
        entry = {"step": state.global_step, "epoch": state.epoch or 0.0, **summary(found)}
        self.history.append(entry)
        state.log_history.append(entry)
        if self.log is not None:
            self.log({key: value for key, value in entry.items() if key.startswith("anatomy/")})


def measure_model(
    model: Any, *, grown: str | os.PathLike[str] | Plan | None = None, tensors: str = "*", layers: int = 3
) -> list[Measured]:
    """Some matrices of a grown model in memory.

    Args:
        model: a grown transformers model, also wrapped; its parameters must be whole on this process.
        grown: the grown directory, or a plan; by default the directory that the model was loaded from.
        tensors: only names (on disk) that match this pattern.
        layers: how many layers, evenly spread.

    Raises:
        GrowthError: no receipt, nothing matches, or the parameters are in pieces (FSDP).
    """
    inner = names.bare(model)
    if isinstance(grown, Plan):
        made = grown
    else:
        place = Path(inner.name_or_path if grown is None else grown)
        told = receipt.read(place)
        made = anatomy.plan_of(place, told, None, None, None)
    shown = anatomy.spread(range(len(made.layers)), layers)
    wanted = {
        t.name: t for t in made.tensors
        if len(t.shape) == 2 and fnmatchcase(t.name, tensors) and anatomy.position(t, made)[0] in shown
    }  # fmt: skip
    found = []
    for name, parameter in names.parameters(inner):
        if not any(key in wanted for key in names.disk_names(inner, name, parameter.shape)):
            continue
        for key, value in names.on_disk(inner, name, parameter.detach()).items():
            if (tensor := wanted.get(key)) is None:
                continue
            if tuple(value.shape) != tensor.shape:
                raise GrowthError("this parameter is not whole, or not the one that was grown", tensor=key,
                                  found=list(value.shape), expected=list(tensor.shape),
                                  cure="examine the saved checkpoint with `hyperclone anatomy`")  # fmt: skip
            found.append(anatomy.measure(value.cpu(), tensor, made, ranks=min(tensor.shape) <= _LARGEST))
    if not found:
        raise GrowthError("no tensor of the chosen layers matches", field="tensors", found=tensors)
    return found


def summary(found: list[Measured]) -> dict[str, float]:
    """Means over the matrices, and the symmetry of each, under the names that are logged."""
    numbers = {
        "read": mean([t.input_symmetry for t in found]),
        "write": mean([t.output_symmetry for t in found]),
        "apart": mean([None if t.read is None else t.read.apart for t in found]),
        "effective_rank": mean([t.effective_rank for t in found]),
        **{f"read/{t.name}": t.input_symmetry for t in found},
    }
    return {f"anatomy/{key}": value for key, value in numbers.items() if value is not None}
