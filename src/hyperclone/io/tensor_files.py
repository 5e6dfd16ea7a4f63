"""Tensors in safetensors files: headers that are validated before any weight is read, and rows read with plain `pread`.

A memory map would be simpler, but its touched pages count as resident memory, up to the size of the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hyperclone.errors import CheckpointError

if TYPE_CHECKING:  # `plan` reads headers only and starts without torch
    from torch import Tensor


# safetensors name -> (torch name, bytes) of the types that can be grown; all others are refused by name.
DTYPES: dict[str, tuple[str, int]] = {
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
}


@dataclass(frozen=True)
class Entry:
    """One stored tensor: where its bytes are."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFiles:
    """Tensors in safetensors files of one directory.

    Attributes:
        path: the directory.
        entries: every tensor by its name.
    """

    def __init__(self, path: Path, entries: dict[str, Entry]) -> None:
        """Nothing is read."""
        self.path, self.entries = path, entries
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start..stop of a tensor (its first dimension; all of it by default), as stored.

        Raises:
            CheckpointError: the file is truncated or cannot be read.
        """
        import torch

        entry = self.entries[name]
        stop = entry.shape[0] if stop is None else stop
        row = entry.nbytes // entry.shape[0]
        dtype: torch.dtype = getattr(torch, DTYPES[entry.dtype][0])
        tensor = torch.empty((stop - start, *entry.shape[1:]), dtype=dtype)
        buffer = tensor.view(torch.uint8).numpy().data.cast("B") if tensor.numel() else memoryview(b"")
        position, done = entry.offset + start * row, 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor(entry.file), [buffer[done:]], position + done)
            except OSError as error:
                raise CheckpointError(
                    "the file cannot be read", file=self.path / entry.file, tensor=name, found=error
                ) from None
            if not count:
                raise CheckpointError("the file is truncated", file=self.path / entry.file, tensor=name)
            done += count
        return tensor

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self.path / file, os.O_RDONLY)
            return self._descriptors[file]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors file, in file order. The safetensors library validates the header first.

    Raises:
        CheckpointError: corrupt, truncated, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size), object_pairs_hook=_no_name_twice)
        header.pop("__metadata__", None)
        return {
            name: _entry(path.name, name, info, start=8 + size)
            for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
        }
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            "not a valid safetensors file",
            file=path,
            found=error,
            cure="download it again, or save the model again; nothing was read from it",
        ) from None


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; safetensors itself would silently take the last of two tensors with one name."""
    if len(content := dict(pairs)) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the header names {next(n for n in names if names.count(n) > 1)!r} twice")
    return content


def _entry(file: str, name: str, info: dict[str, Any], *, start: int) -> Entry:
    begin, end = info["data_offsets"]
    shape = tuple(info["shape"])
    # safetensors checks this too; a wrong size here would silently shift every row that follows.
    if info["dtype"] in DTYPES and end - begin != math.prod(shape) * DTYPES[info["dtype"]][1]:
        raise ValueError(f"{name} has {end - begin} bytes for shape {list(shape)} of {info['dtype']}")
    return Entry(file, info["dtype"], shape, start + begin, end - begin)
