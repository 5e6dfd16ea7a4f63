"""Callbacks for transformers' Trainer that measure how far the copies in a grown model diverge while it trains."""

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
from hyperclone.anatomy.matrices import matrices
from hyperclone.anatomy.weights import mean
from hyperclone.conversion.provenance import plan_of_model
from hyperclone.errors import GrowthError
from hyperclone.hf import parameter_names
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.training import rng
from hyperclone.training.run_log import RunLog

_QUICK = 2e10  # largest cost of all spectra (`_cost`) at an evaluation: about a second on two cores
_FEW = 3  # layers that are measured of a model whose spectra cost more


class AnatomyCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Logs, at every evaluation and at the start, how far the copies in some matrices have diverged.

    Entries go to `state.log_history` (and so to trainer_state.json), to `history`, and to `log` where one is given.
    Keys: anatomy/read and anatomy/write (symmetry between copies of inputs and of outputs), anatomy/divergence and
    anatomy/effective_rank, means over the matrices; and anatomy/read/NAME for each. The rank is left out where spectra
    would take longer than a second or so. A resumed run has its first entry already.
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
            layers: how many layers are measured, evenly spread; None for all of a small model, three of a large one.
                Tensors outside of layers are not measured.
            log: is also given every entry (`trainer.log`).
        """
        self.grown, self.pattern, self.layers, self.log = grown, tensors, layers, log
        self.history: list[dict[str, float]] = []
        self._step: int | None = None  # of the last entry, in every process: they must agree on when to gather

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
        with rng.preserved():
            if not state.is_world_process_zero:
                take_part(model, grown=self.grown, tensors=self.pattern, layers=self.layers)
                return
            measured = measure_model(model, grown=self.grown, tensors=self.pattern, layers=self.layers)
        entry = {"step": state.global_step, "epoch": state.epoch or 0.0, **summary(measured)}
        self.history.append(entry)
        state.log_history.append(entry)
        self.record(entry)

    def record(self, entry: dict[str, float]) -> None:
        """Pass an entry on."""
        if self.log is not None:
            self.log(_figures(entry))


class RecordedAnatomyCallback(AnatomyCallback):
    """Of a run of `hyperclone train`: measures all layers of a small model, and reports to the run's log."""

    def __init__(self, directory: Path, run_log: RunLog) -> None:
        """directory: of the grown model."""
        super().__init__(grown=directory, layers=None)
        self._run_log = run_log

    def record(self, entry: dict[str, float]) -> None:
        """Write a measurement into the run's log."""
        figures = {key.removeprefix("anatomy/"): value for key, value in _figures(entry).items()}
        self._run_log.anatomy(int(entry["step"]), figures)


def measure_model(
    model: Any, *, grown: str | os.PathLike[str] | Plan | None = None, tensors: str = "*", layers: int | None = _FEW
) -> list[TensorAnatomy]:
    """Measure some matrices of a grown model in memory.

    Args:
        model: a grown transformers model, also wrapped. FSDP2's shards are gathered, one parameter at a time: other
            processes call `take_part` with the same arguments.
        grown: the grown directory, or a plan; by default the directory that the model was loaded from.
        tensors: only names (on disk) that match this pattern.
        layers: how many layers, evenly spread; None for all of a small model, three of a large one. Ranks are left
            out where even the spectra of these would take longer than a second or so.

    Raises:
        GrowthError: no receipt, nothing matches, or parameters that are flattened (FSDP1).
    """
    inner = parameter_names.unwrap(model)
    plan = plan_of_model(inner, grown)
    wanted, measured = _wanted(plan, tensors, layers), []
    ranks = sum(map(_cost, wanted.values())) <= _QUICK
    for tensor, value in _matrices(inner, wanted):
        if tuple(value.shape) != tensor.shape:
            raise GrowthError("this parameter is not whole, or not the one that was grown", tensor=tensor.name,
                              found=list(value.shape), expected=list(tensor.shape),
                              cure="examine the saved checkpoint with `hyperclone anatomy`")  # fmt: skip
        measured.append(examine.measure(value.cpu(), tensor, plan, ranks=ranks))
    if not measured:
        raise GrowthError("no tensor of the chosen layers matches", field="tensors", found=tensors)
    return measured


def take_part(
    model: Any, *, grown: str | os.PathLike[str] | Plan | None = None, tensors: str = "*", layers: int | None = _FEW
) -> None:
    """What other processes do during `measure_model`: contribute their shards, if they have any."""
    if any(isinstance(parameter.data, DTensor) for parameter in model.parameters()):
        inner = parameter_names.unwrap(model)
        plan = plan_of_model(inner, grown)
        for _ in _matrices(inner, _wanted(plan, tensors, layers)):
            pass


def _wanted(plan: Plan, tensors: str, layers: int | None) -> dict[str, TensorPlan]:
    """The tensors whose matrices are to be measured, by their names on disk."""
    placed = [(t, examine.position(t, plan)[0]) for t in plan.tensors if matrices(t)]
    depth = range(len(plan.layers))
    if layers is None:
        quick = sum(_cost(t) for t, layer in placed if layer is not None) <= _QUICK
        layers = len(depth) if quick else _FEW
    shown = examine.spread(depth, layers)
    return {t.name: t for t, layer in placed if layer in shown and fnmatchcase(t.name, tensors)}


def _cost(tensor: TensorPlan) -> float:
    """The multiplications that its spectra take, about: longer side times shorter side squared of each matrix."""
    return float(sum(max(matrix.shape) * min(matrix.shape) ** 2 for matrix in matrices(tensor)))


def _matrices(inner: Any, wanted: dict[str, TensorPlan]) -> Iterator[tuple[TensorPlan, Tensor]]:
    """Each of the wanted matrices with its value."""
    for name, parameter in parameter_names.named_parameters(inner):
        if not any(key in wanted for key in parameter_names.disk_shapes(inner, name, parameter.shape)):
            continue
        value = parameter.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        for key, part in parameter_names.to_disk(inner, name, whole).items():
            if key in wanted:
                experts = matrices(wanted[key]) if part.dim() == 3 else [wanted[key]]
                yield from zip(experts, part if part.dim() == 3 else [part], strict=True)


def summary(measured: list[TensorAnatomy]) -> dict[str, float]:
    """Means over the matrices, and the symmetry of each, under the names in logs."""
    numbers = {
        "read": mean([t.input_symmetry for t in measured]),
        "write": mean([t.output_symmetry for t in measured]),
        "divergence": mean([None if t.read is None else t.read.divergence for t in measured]),
        "effective_rank": mean([t.effective_rank for t in measured]),
        **{f"read/{t.name}": t.input_symmetry for t in measured},
    }
    return {f"anatomy/{key}": value for key, value in numbers.items() if value is not None}


def _figures(entry: dict[str, float]) -> dict[str, float]:
    """An entry minus its step and epoch."""
    return {key: value for key, value in entry.items() if key.startswith("anatomy/")}
