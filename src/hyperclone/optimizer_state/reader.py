"""Reading a source's optimizer state: from a transformers Trainer checkpoint, or a torch distributed checkpoint.

A Trainer checkpoint has `optimizer.pt`, a torch state dict that numbers parameters in the order of Trainer's groups:
those that decay first, each group in the model's order. If the optimizer was given names (`param_names`, as
`hyperclone.param_groups` does), the state dict has them. It is loaded with weights_only=True and memory-mapped.
A distributed checkpoint (distributed.py) has names. Both identify moments by the parameter's name in memory; here they
get the names of its tensors on disk, which plans use.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError, reason
from hyperclone.hf import parameter_names
from hyperclone.hf.models import load_without_weights
from hyperclone.hf.trainer import decayed_names
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.tensor_files import DTYPES
from hyperclone.optimizer_state import distributed, torch_files

# kind of moment -> its power of the gradient
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "momentum_buffer": 1}
_FILES = ("optimizer.pt", "optimizer.bin")
_TYPES = {f"torch.{name}" for name, _ in DTYPES.values()}


class OptimizerState(Protocol):
    """An optimizer state as it was saved, by the names of parameters in memory.

    Attributes:
        file: that holds it.
        moments: of every parameter by kind, on device meta.
        steps: of every parameter whose steps are counted.
        settings: the optimizer's groups as plain numbers; empty if they are unknown.
    """

    @property
    def file(self) -> Path:
        """The file that messages name."""

    @property
    def moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Of every parameter by kind, on device meta."""

    @property
    def steps(self) -> Mapping[str, int]:
        """Of every parameter whose steps are counted."""

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The optimizer's groups as plain numbers."""

    def tensor(self, name: str, kind: str) -> Tensor:
        """A moment of a parameter."""


@dataclass(frozen=True, eq=False)
class SourceState:
    """A source's moments by the names of its tensors on disk.

    Attributes:
        file: that holds them.
        optimizer: "adamw", "sgd" or "muon" (which may have AdamW's moments of some tensors, as RotatedMuon has).
        moments: of every tensor by kind (one of MOMENTS), on device meta.
        steps: the number of steps of each tensor; empty if the optimizer does not count them.
        settings: the optimizer's groups as plain numbers.
    """

    file: Path
    optimizer: str
    moments: Mapping[str, Mapping[str, Tensor]]
    steps: dict[str, int]
    settings: list[dict[str, Any]]
    _stored: OptimizerState
    _model: Any
    _parameter: dict[str, str]  # tensor on disk -> parameter in memory

    def moment(self, name: str, kind: str) -> Tensor:
        """A moment of a tensor on disk, in the tensor's shape."""
        return self._saved(self._parameter[name], kind)[name]

    @functools.lru_cache(maxsize=2)  # noqa: B019  # the experts of a fused parameter are read one after another
    def _saved(self, parameter: str, kind: str) -> dict[str, Tensor]:
        return parameter_names.to_disk(self._model, parameter, self._stored.tensor(parameter, kind))


def read_state(path: Path, source: Checkpoint) -> SourceState:
    """The optimizer state at `path`.

    Args:
        path: a Trainer checkpoint or its optimizer.pt, or a torch distributed checkpoint.
        source: the model that it must belong to.

    Raises:
        CheckpointError: there is none, it cannot be read or grown, or it belongs to another model.
    """
    model = load_without_weights(source.path)
    shapes = {name: parameter.shape for name, parameter in parameter_names.named_parameters(model)}
    stored = _open(path, model, shapes)
    kinds = {kind for moments in stored.moments.values() for kind in moments}
    if not kinds:
        raise CheckpointError("this optimizer has no moments", file=stored.file, cure="grow without --optimizer-state")
    if not kinds <= set(MOMENTS) or kinds == {"exp_avg"}:  # exp_avg alone: Lion, which takes its sign
        raise CheckpointError("the state of this optimizer cannot be grown", file=stored.file,
                              found=", ".join(sorted(kinds)),
                              expected="AdamW's exp_avg and exp_avg_sq, or a momentum_buffer",
                              cure="grow without --optimizer-state" + (
                                  "; the moments of rotated AdamW are of copies, which this growth would copy again"
                                  if "rotated_avg" in kinds else ""))  # fmt: skip
    muon = any("ns_steps" in group for group in stored.settings)
    optimizer = "muon" if muon else "adamw" if "exp_avg_sq" in kinds else "sgd"
    moments: dict[str, dict[str, Tensor]] = {}
    parameter: dict[str, str] = {}
    for name, by_kind in stored.moments.items():
        for kind, like in by_kind.items():
            if name not in shapes or like.shape != shapes[name]:
                raise _foreign(stored.file, name, f"{kind} of {list(like.shape)}", list(shapes.get(name, [])) or None)
            if str(like.dtype) not in _TYPES:
                raise CheckpointError("moments of this type cannot be grown", file=stored.file, tensor=name,
                                      found=like.dtype, expected=", ".join(sorted(_TYPES)))  # fmt: skip
            for key, part in parameter_names.to_disk(model, name, like).items():
                if key not in source.entries or part.shape != source.entries[key].shape:
                    raise _foreign(stored.file, key, list(part.shape), "a tensor of the source")
                parameter[key] = name
                moments.setdefault(key, {})[kind] = part
    steps = {key: stored.steps[name] for key, name in parameter.items() if name in stored.steps}
    return SourceState(stored.file, optimizer, moments, steps, stored.settings, stored, model, parameter)


def _open(path: Path, model: Any, shapes: Mapping[str, torch.Size]) -> OptimizerState:
    if path.is_file():
        return TorchState(path, model, shapes)
    for file in _FILES:
        if (path / file).is_file():
            return TorchState(path / file, model, shapes)
    for directory in (path, *sorted(path.glob("optimizer*")), path / "optim"):
        if (directory / distributed.METADATA).is_file():
            return distributed.DistributedState(directory)
    raise CheckpointError(
        "no optimizer state here" if path.is_dir() else "no such checkpoint",
        file=path,
        expected=f"{_FILES[0]} of a Trainer checkpoint, or a torch distributed checkpoint ({distributed.METADATA})",
    )


class TorchState:
    """A state dict of a torch optimizer in one file."""

    def __init__(self, file: Path, model: Any, shapes: Mapping[str, torch.Size]) -> None:
        """Memory-map the file and find the name of every parameter.

        Raises:
            CheckpointError: it is not such a file, or of another model.
        """
        self.file = file
        try:
            content = torch_files.load(file, mmap=True)
        except Exception as error:  # zip, pickle and torch raise different ones
            raise CheckpointError("this is no optimizer state that can be loaded without running code from it",
                                  file=file, found=reason(error)) from None  # fmt: skip
        state, groups = torch_files.check_optimizer(content, file)
        self._state: dict[str, dict[str, Any]] = {
            name: state[key] for key, name in _numbered(file, model, shapes, groups).items() if state.get(key)
        }
        self.settings = [
            {k: v for k, v in group.items() if k not in ("params", "param_names") and _plain(v)} for group in groups
        ]
        self.steps = {
            name: torch_files.steps_of(moments["step"], file=file, name=name)
            for name, moments in self._state.items()
            if "step" in moments
        }
        self.moments = {
            name: {k: v.to("meta") for k, v in moments.items() if isinstance(v, Tensor) and k != "step"}
            for name, moments in self._state.items()
        }

    def tensor(self, name: str, kind: str) -> Tensor:
        """A moment as it is stored."""
        moment: Tensor = self._state[name][kind]
        return moment


def _numbered(file: Path, model: Any, shapes: Mapping[str, torch.Size], groups: list[Any]) -> dict[Any, str]:
    """Key in the state dict -> name of the parameter in memory."""
    keys = [key for group in groups for key in group["params"]]
    if all(group.get("param_names") is not None for group in groups):
        order = [parameter_names.unwrapped_name(name) for group in groups for name in group["param_names"]]
    elif all(isinstance(key, str) for key in keys):
        order = [parameter_names.unwrapped_name(key) for key in keys]
    else:
        decayed = decayed_names(model)
        parts = [name for name in shapes if name in decayed], [name for name in shapes if name not in decayed]
        order = list(shapes) if len(groups) == 1 else [name for part in parts for name in part]
        sizes = [len(part) for part in parts] if len(groups) > 1 else [len(shapes)]
        if [len(group["params"]) for group in groups] != sizes:
            raise CheckpointError(
                "the parameters of this optimizer are not the model's parameters in Trainer's order", file=file,
                found="groups of " + ", ".join(str(len(group["params"])) for group in groups),
                expected="groups of " + ", ".join(map(str, sizes)),
                cure="check that it is of this model, and that all its parameters were trained. An optimizer with "
                "named parameters (hyperclone.param_groups, or (name, parameter) pairs) can have any groups",
            )  # fmt: skip
    if len(order) != len(keys):
        raise CheckpointError("names and parameters differ in number", file=file, found=len(order), expected=len(keys))
    return dict(zip(keys, order, strict=True))


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool) or (isinstance(value, tuple | list) and all(map(_plain, value)))


def _foreign(path: Path, name: str, found: object, expected: object) -> CheckpointError:
    return CheckpointError("this optimizer state belongs to another model", file=path, tensor=name, found=found,
                           expected=expected, cure="give the checkpoint that was saved with the source")  # fmt: skip
