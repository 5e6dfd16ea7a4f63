"""What is believed of a file that torch.save wrote: its archive, its tensors, and the state dict of an optimizer."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError
from hyperclone.units import is_finite


def load(file: Path | IO[bytes], *, mmap: bool = False) -> Any:
    """What torch.save wrote, loaded without running code from it.

    It needs no more memory than its own size: an archive in which something is compressed is refused.

    Args:
        file: a file, or an open one, from its beginning.
        mmap: map the file instead of reading it.

    Raises:
        Exception: it is no such file; zip, pickle and torch raise different ones.
    """
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed, which torch.save never does")
    if not isinstance(file, Path):
        file.seek(0)
    return torch.load(file, map_location="cpu", mmap=mmap, weights_only=True)


def is_plain(value: object) -> bool:
    """Whether a loaded value is an ordinary tensor with its numbers in memory."""
    return type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu"


def check_optimizer(content: object, file: Path) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """(state, groups) of an optimizer's state dict.

    Every state is a dict, and every group a dict with a list of keys that are whole numbers or names, and as many
    `param_names` if it has any.

    Raises:
        CheckpointError: it is none.
    """
    match content:
        case {"state": dict(state), "param_groups": list(groups)}:
            pass
        case _:
            raise CheckpointError("this is no optimizer state", file=file, expected="state and param_groups")
    for key, moments in state.items():
        if not isinstance(moments, dict) or not all(isinstance(kind, str) for kind in moments):
            raise _corrupt(file, f"state.{key}", type(moments).__name__, "a dict of moments by name")
        for kind, value in moments.items():
            if isinstance(value, Tensor) and not is_plain(value):
                raise _corrupt(file, f"state.{key}.{kind}", "a tensor of a special kind", "a plain tensor")
    for number, group in enumerate(groups):
        field = f"param_groups.{number}"
        if not isinstance(group, dict) or not all(isinstance(name, str) for name in group):
            raise _corrupt(file, field, type(group).__name__, "a dict of settings")
        keys, names = group.get("params"), group.get("param_names")
        if not isinstance(keys, list) or not all(type(key) in (int, str) for key in keys):
            raise _corrupt(file, f"{field}.params", type(keys).__name__, "a list of numbers or names")
        if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
            raise _corrupt(file, f"{field}.param_names", type(names).__name__, "a list of names")
    return state, groups


def steps_of(value: object, *, file: Path, name: str) -> int:
    """The number of steps of a parameter, from what an optimizer keeps under `step`.

    Raises:
        CheckpointError: it is no whole number.
    """
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if is_finite(number) and 0 <= number == int(number):
        return int(number)
    found = f"a tensor of {list(number.shape)}" if isinstance(number, Tensor) else number
    raise CheckpointError("the number of steps is no whole number", file=file, tensor=name, field="step", found=found,
                          cure="copy the checkpoint again")  # fmt: skip


def _corrupt(file: Path, field: str, found: object, expected: str) -> CheckpointError:
    return CheckpointError("this optimizer state is corrupt", file=file, field=field, found=found, expected=expected,
                           cure="copy the checkpoint again")  # fmt: skip
