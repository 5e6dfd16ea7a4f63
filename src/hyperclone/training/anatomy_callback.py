"""Callbacks for transformers' Trainer that know about copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hyperclone.anatomy import examine
from hyperclone.anatomy.examine import TensorAnatomy
from hyperclone.anatomy.weights import mean
from hyperclone.conversion.provenance import plan_behind
from hyperclone.errors import GrowthError
from hyperclone.hf import parameter_names
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.training import rng

_QUICK = 2e10  # cost of all spectra (`_cost`) that is borne with every evaluation: a second on two cores
_FEW = 3  # layers of what is not quick


class AnatomyCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Logs, at every evaluation and at the start, how far the copies in some matrices have moved apart.

    Entries go to `state.log_history` (and so to trainer_state.json), to `history`, and to `log` where one is given.
    Keys: anatomy/read and anatomy/write (symmetry between copies of inputs and of outputs), anatomy/apart and
    anatomy/effective_rank, means over the matrices; and anatomy/read/NAME for each. The rank is left out where spectra
    would take longer than a second or so. A run that is resumed has its first entry already.
    """

    def __init__(
        self,
        *,
        grown: str | os.PathLike[str] | Plan | None = None,
        tensors: str = "*",
        layers: int | None = _FEW,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """What to measure.

        Args:
            grown: the grown directory with its receipt, or a plan; by default where the model was loaded from.
            tensors: only names (on disk) that match this pattern.
            layers: how many layers are measured, evenly spread, what stands outside of layers is not; None for all
                of a small model, three of another.
            log: also given every entry (`trainer.log`).
        """
        self.grown, self.pattern, self.layers, self.log = grown, tensors, layers, log
        self.history: list[dict[str, float]] = []
        self._step: int | None = None  # of the last entry, on every process: they must agree on when to gather

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first entry."""
        if not any(key.startswith("anatomy/") for entry in state.log_history for key in entry):
            self._measure(state, kwargs["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An entry for each evaluation."""
        if self._step != state.global_step:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: Any) -> None:
        self._step = state.global_step
        with rng.untouched():
            if not state.is_world_process_zero:
                take_part(model, grown=self.grown, tensors=self.pattern, layers=self.layers)
                return
            found = measure_model(model, grown=self.grown, tensors=self.pattern, layers=self.layers)
        entry = {"step": state.global_step, "epoch": state.epoch or 0.0, **summary(found)}
        self.history.append(entry)
        state.log_history.append(entry)
        if self.log is not None:
            self.log({key: value for key, value in entry.items() if key.startswith("anatomy/")})


def noting(trainer: Any, place: Path) -> AnatomyCallback:
    """Of a GrownTrainer: each entry is a line of metrics.jsonl ("anatomy": {"read": ..., "read/NAME": ...}).

    Args:
        trainer: whose metrics they are.
        place: the grown directory.
    """

    def note(entry: dict[str, float]) -> None:
        trainer.note("anatomy", {"anatomy": {key.removeprefix("anatomy/"): value for key, value in entry.items()}})
        trainer.clock.skip()

    return AnatomyCallback(grown=place, layers=None, log=note)


def measure_model(
    model: Any, *, grown: str | os.PathLike[str] | Plan | None = None, tensors: str = "*", layers: int | None = _FEW
) -> list[TensorAnatomy]:
    """Some matrices of a grown model in memory.

    Args:
        model: a grown transformers model, also wrapped. FSDP2's shards are gathered, one parameter at a time: other
            processes call `take_part` with the same arguments.
        grown: the grown directory, or a plan; by default the directory that the model was loaded from.
        tensors: only names (on disk) that match this pattern.
        layers: how many layers, evenly spread; None for all of a small model, three of another. Ranks are left
            out where the spectra of these would still take longer than a second or so.

    Raises:
        GrowthError: no receipt, nothing matches, or the parameters are in pieces (FSDP1).
    """
    inner = parameter_names.bare(model)
    made = plan_behind(inner, grown)
    wanted, found = _wanted(made, tensors, layers), []
    ranks = sum(map(_cost, wanted.values())) <= _QUICK
    for tensor, value in _matrices(inner, wanted):
        if tuple(value.shape) != tensor.shape:
            raise GrowthError("this parameter is not whole, or not the one that was grown", tensor=tensor.name,
                              found=list(value.shape), expected=list(tensor.shape),
                              cure="examine the saved checkpoint with `hyperclone anatomy`")  # fmt: skip
        found.append(examine.measure(value.cpu(), tensor, made, ranks=ranks))
    if not found:
        raise GrowthError("no tensor of the chosen layers matches", field="tensors", found=tensors)
    return found


def take_part(
    model: Any, *, grown: str | os.PathLike[str] | Plan | None = None, tensors: str = "*", layers: int | None = _FEW
) -> None:
    """The part of another process in a `measure_model`: it gives its shards, if there are any, and measures nothing."""
    if any(isinstance(parameter.data, DTensor) for parameter in model.parameters()):
        inner = parameter_names.bare(model)
        made = plan_behind(inner, grown)
        for _ in _matrices(inner, _wanted(made, tensors, layers)):
            pass


def _wanted(made: Plan, tensors: str, layers: int | None) -> dict[str, TensorPlan]:
    """The matrices to measure, by their names on disk."""
    placed = [(t, examine.position(t, made)[0]) for t in made.tensors if len(t.shape) == 2]
    depth = range(len(made.layers))
    if layers is None:
        quick = sum(_cost(t) for t, layer in placed if layer is not None) <= _QUICK
        layers = len(depth) if quick else _FEW
    shown = examine.spread(depth, layers)
    return {t.name: t for t, layer in placed if layer in shown and fnmatchcase(t.name, tensors)}


def _cost(tensor: TensorPlan) -> float:
    """Of its spectrum: longer side times shorter side squared, about the multiplications."""
    return float(max(tensor.shape) * min(tensor.shape) ** 2)


def _matrices(inner: Any, wanted: dict[str, TensorPlan]) -> Iterator[tuple[TensorPlan, Tensor]]:
    """Each of them with its value."""
    for name, parameter in parameter_names.parameters(inner):
        if not any(key in wanted for key in parameter_names.disk_names(inner, name, parameter.shape)):
            continue
        value = parameter.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        for key, part in parameter_names.on_disk(inner, name, whole).items():
            if key in wanted:
                yield wanted[key], part


def summary(found: list[TensorAnatomy]) -> dict[str, float]:
    """Means over the matrices, and the symmetry of each, under the names that are logged."""
    numbers = {
        "read": mean([t.input_symmetry for t in found]),
        "write": mean([t.output_symmetry for t in found]),
        "apart": mean([None if t.read is None else t.read.apart for t in found]),
        "effective_rank": mean([t.effective_rank for t in found]),
        **{f"read/{t.name}": t.input_symmetry for t in found},
    }
    return {f"anatomy/{key}": value for key, value in numbers.items() if value is not None}
