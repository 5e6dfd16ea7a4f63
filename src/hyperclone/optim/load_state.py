"""Putting a grown optimizer state into an optimizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError
from hyperclone.hf import parameter_names
from hyperclone.io.tensor_files import TensorFiles
from hyperclone.optim.rotated_adamw import RotatedAdamW
from hyperclone.optimizer_state import writer
from hyperclone.optimizer_state.reader import MOMENTS

_PAIR = {"exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class Loaded:
    """What `load_state` has done.

    Attributes:
        step: how many steps the source had taken; None where its optimizer does not count.
        filled: how many parameters have their moments.
        fresh: names of those that start without.
    """

    step: int | None
    filled: int
    fresh: tuple[str, ...]


def load_state(optimizer: torch.optim.Optimizer, model: nn.Module, directory: str | os.PathLike[str]) -> Loaded:
    """Fill an optimizer with the moments and steps in a directory that was grown with an optimizer state.

    Moments are cast to their parameter's type and sharded like it. What the optimizer already has of a parameter is
    replaced.

    Args:
        optimizer: of the kind that the state is of (AdamW's is RotatedAdamW's as well), over parameters of `model`,
            which has taken no step yet.
        model: the grown model, wrapped or not.
        directory: where `hyperclone grow --optimizer-state` wrote it.

    Raises:
        CheckpointError: there is no optimizer state, or it is of another optimizer or model.
    """
    place = Path(directory)
    told = receipt.read(place)
    there = writer.open_moments(place)
    if (
        told is None
        or told.optimizer_state is None
        or (not there.entries and told.optimizer_state["moments"] != "reset")
    ):
        raise CheckpointError("no optimizer state here", file=place, expected=f"{writer.STEM}.safetensors",
                              cure="grow with --optimizer-state CHECKPOINT")  # fmt: skip
    state = told.optimizer_state
    _check_kind(optimizer, str(state["optimizer"]), str(state["moments"]))
    inner = parameter_names.unwrap(model)
    named = {parameter: name for name, parameter in parameter_names.named_parameters(model)}
    on_disk = {name: parameter_names.disk_shapes(inner, name, parameter.shape) for parameter, name in named.items()}
    _check_known(there, {key for stored in on_disk.values() for key in stored})
    filled, fresh = 0, []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in named:
                raise CheckpointError("the optimizer has a parameter that is not the model's", file=place,
                                      found=list(parameter.shape))  # fmt: skip
            name = named[parameter]
            stored = on_disk[name]
            first = next(iter(stored))
            found = {kind for kind in MOMENTS for key in stored if f"{key}.{kind}" in there.entries}
            if not found:
                fresh.append(name)
                continue
            found |= _PAIR if found & _PAIR else set()  # AdamW cannot go on with one of them
            kinds = [kind for kind in MOMENTS if kind in found]
            values = {
                kind: _like(parameter, parameter_names.from_disk(inner, name, parameter.shape, {
                    key: _moment(there, f"{key}.{kind}", shape) for key, shape in stored.items()
                }))
                for kind in kinds
            }  # fmt: skip
            step = state["steps"].get(first, state["step"])
            if isinstance(optimizer, RotatedAdamW):
                values = optimizer.grown_moments(parameter, name, values, step)
            elif step is not None:
                on_device = group.get("capturable") or group.get("fused")
                values["step"] = torch.tensor(float(step), device=parameter.device if on_device else "cpu")
            optimizer.state[parameter] = values
            filled += 1
    return Loaded(state["step"], filled, tuple(fresh))


def _check_known(there: TensorFiles, known: set[str]) -> None:
    """Every moment must be of a tensor that the model has."""
    for moment in there.entries:
        if (name := moment.rpartition(".")[0]) not in known:
            raise CheckpointError("this optimizer state belongs to another model", file=there.path, tensor=moment,
                                  expected=f"moments of {min(known)} and the like",
                                  cure=f"{name} is no tensor of this model: load the directory that the state lies in",
                                  )  # fmt: skip


def _moment(there: TensorFiles, name: str, shape: torch.Size) -> Tensor:
    if name not in there.entries:
        raise CheckpointError("a moment is missing", file=there.path, tensor=name)
    if (found := there.entries[name].shape) != tuple(shape):
        raise CheckpointError("this optimizer state belongs to another model", file=there.path, tensor=name,
                              found=list(found), expected=list(shape))  # fmt: skip
    return there.read(name)


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A moment in the type, place and sharding of its parameter."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(device=parameter.device, dtype=parameter.dtype)
    if isinstance(parameter.data, DTensor):
        return distribute_tensor(value, parameter.data.device_mesh, parameter.data.placements)
    return value


def _check_kind(optimizer: torch.optim.Optimizer, kind: str, moments: str) -> None:
    if isinstance(optimizer, RotatedAdamW) and kind == "adamw":
        if moments == "first-copy":
            raise CheckpointError("rotated AdamW needs the moments of all copies; first-copy moments are for AdamW",
                                  found=type(optimizer).__name__, expected="AdamW",
                                  cure="grow with --moments copy")  # fmt: skip
        return
    has = optimizer.defaults
    marks = {"ns_steps": "muon", "differences": "rotated", "betas": "adamw", "momentum": "sgd"}
    found = next((kind for mark, kind in marks.items() if mark in has), "another")
    if found != kind:
        raise CheckpointError("the optimizer state is of another optimizer", found=type(optimizer).__name__,
                              expected=kind, cure="use the optimizer that the source was trained with")  # fmt: skip
