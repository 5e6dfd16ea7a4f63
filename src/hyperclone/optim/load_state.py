"""Loading an optimizer state that was grown with the model into an optimizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError
from hyperclone.hf import parameter_names
from hyperclone.io.files import user_path
from hyperclone.io.tensor_files import TensorFiles
from hyperclone.optim.rotated_adamw import RotatedAdamW
from hyperclone.optimizer_state import writer
from hyperclone.optimizer_state.reader import MOMENTS

_ADAM = {"exp_avg", "exp_avg_sq"}
# An entry of an optimizer's defaults that only this kind has, most telling first.
_MARKS = {"differences": "rotated", "ns_steps": "muon", "betas": "adamw", "momentum": "sgd"}


@dataclass(frozen=True)
class Loaded:
    """What `load_state` has done.

    Attributes:
        step: how many steps the source's optimizer had taken; None where it does not count them.
        filled: how many parameters have moments now.
        fresh: names of the parameters that start without.
    """

    step: int | None
    filled: int
    fresh: tuple[str, ...]


def load_state(optimizer: torch.optim.Optimizer, model: nn.Module, directory: str | os.PathLike[str]) -> Loaded:
    """Fill an optimizer with the moments and steps in a directory that was grown with an optimizer state.

    Moments are cast to their parameter's type and sharded like it. What the optimizer already has of a parameter is
    replaced.

    Args:
        optimizer: of the kind that the state belongs to, over parameters of `model` (AdamW's can be loaded into
            RotatedAdamW and RotatedMuon, Muon's into RotatedMuon as well). It has taken no step yet.
        model: the grown model, wrapped or not.
        directory: where `hyperclone grow --optimizer-state` wrote it.

    Raises:
        CheckpointError: there is no optimizer state, or it belongs to another optimizer or model.
    """
    state, moments = _read(user_path(directory))
    _check_kind(optimizer, str(state["optimizer"]), str(state["moments"]))
    inner = parameter_names.unwrap(model)
    names = {parameter: name for name, parameter in parameter_names.named_parameters(model)}
    stored = {name: parameter_names.disk_shapes(inner, name, parameter.shape) for parameter, name in names.items()}
    _check_known(moments, {tensor for tensors in stored.values() for tensor in tensors})
    filled, fresh = 0, []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise CheckpointError("the optimizer has a parameter that is not the model's", file=directory,
                                      found=list(parameter.shape))  # fmt: skip
            name = names[parameter]
            values = _values(moments, inner, parameter, name, stored[name])
            if not values or (isinstance(optimizer, RotatedAdamW) and not optimizer.takes(name, values.keys())):
                fresh.append(name)
                continue
            step = state["steps"].get(next(iter(stored[name])), state["step"])
            if isinstance(optimizer, RotatedAdamW):
                values = optimizer.grown_moments(parameter, name, values, step or 0)
            elif step is not None:
                on_device = group.get("capturable") or group.get("fused")
                values["step"] = torch.tensor(float(step), device=parameter.device if on_device else "cpu")
            optimizer.state[parameter] = values
            filled += 1
    return Loaded(state["step"], filled, tuple(fresh))


def _read(directory: Path) -> tuple[dict[str, Any], TensorFiles]:
    """What the receipt says about the optimizer state, and its moments."""
    recorded, moments = receipt.read(directory), writer.open_moments(directory)
    state = None if recorded is None else recorded.optimizer_state
    if state is None or (not moments.entries and state["moments"] != "reset"):
        raise CheckpointError("no optimizer state here", file=directory, expected=f"{writer.STEM}.safetensors",
                              cure="grow with --optimizer-state CHECKPOINT")  # fmt: skip
    return state, moments


def _values(
    moments: TensorFiles, model: Any, parameter: nn.Parameter, name: str, stored: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """The moments of a parameter by their kind, put together from those of its stored tensors; empty if it has none."""
    kinds = {kind for kind in MOMENTS for tensor in stored if f"{tensor}.{kind}" in moments.entries}
    if kinds & _ADAM:
        kinds |= _ADAM  # AdamW cannot use one without the other
    values = {}
    for kind in MOMENTS:
        if kind in kinds:
            parts = {tensor: _moment(moments, f"{tensor}.{kind}", shape) for tensor, shape in stored.items()}
            values[kind] = _like(parameter, parameter_names.from_disk(model, name, parameter.shape, parts))
    return values


def _check_known(moments: TensorFiles, known: set[str]) -> None:
    """Every moment must be of a tensor that the model has."""
    for moment in moments.entries:
        if (name := moment.rpartition(".")[0]) not in known:
            raise CheckpointError("this optimizer state belongs to another model", file=moments.path, tensor=moment,
                                  expected=f"moments of {min(known)} and the like",
                                  cure=f"{name} is no tensor of this model: load the directory that the state lies in",
                                  )  # fmt: skip


def _moment(moments: TensorFiles, name: str, shape: torch.Size) -> Tensor:
    if name not in moments.entries:
        raise CheckpointError("a moment is missing", file=moments.path, tensor=name)
    if (found := moments.entries[name].shape) != tuple(shape):
        raise CheckpointError("this optimizer state belongs to another model", file=moments.path, tensor=name,
                              found=list(found), expected=list(shape))  # fmt: skip
    return moments.read(name)


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A moment with its parameter's type, device and sharding."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(device=parameter.device, dtype=parameter.dtype)
    if isinstance(parameter.data, DTensor):
        return distribute_tensor(value, parameter.data.device_mesh, parameter.data.placements)
    return value


def _check_kind(optimizer: torch.optim.Optimizer, kind: str, moments: str) -> None:
    if isinstance(optimizer, RotatedAdamW) and kind in optimizer.grows_from:
        if moments == "first-copy" and optimizer.turns:
            raise CheckpointError(
                "an optimizer in the coordinates of copies needs the moments of all copies; first-copy moments are for "
                "AdamW", found=type(optimizer).__name__, expected="AdamW", cure="grow with --moments copy",
            )  # fmt: skip
        return
    used = next((name for mark, name in _MARKS.items() if mark in optimizer.defaults), "another")
    if used != kind:
        raise CheckpointError("the optimizer state belongs to another optimizer", found=type(optimizer).__name__,
                              expected=kind, cure="use the optimizer that the source was trained with")  # fmt: skip
