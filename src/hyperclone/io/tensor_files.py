"""Tensors in safetensors files: headers that are validated before any weight is read, and rows read with plain `pread`.

A memory map would be simpler, but its touched pages count as resident memory, up to the size of the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from hyperclone.errors import CheckpointError, HypercloneError, UnreadableError, printable
from hyperclone.io.files import LFS_SIZE, open_regular, refuse_lfs_pointer

if TYPE_CHECKING:  # `plan` reads headers only and starts without torch
    from torch import Tensor

    from hyperclone.io.buffers import Buffers


# safetensors name -> (torch name, bytes) of the types that can be grown; all others are refused by name.
DTYPES: dict[str, tuple[str, int]] = {
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
}
# Types of numbers and scales that stand for weights (scaled_weights.py).
_PARTS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "U8": "uint8"}


_LARGEST_HEADER = 100_000_000  # bytes; safetensors reads no larger one

FileVersion = tuple[int, int, int, int]  # device, inode, bytes, modification time in ns


@dataclass(frozen=True)
class Entry:
    """One stored tensor: where its bytes are.

    Attributes:
        file: its name in the directory.
        dtype: as safetensors calls it.
        shape, offset, nbytes: its sizes, where it begins in the file, and its length there.
        version: of the file when its header was read; None where there is no file to read from.
        base: it was saved from the base model, so its name in the file lacks the family's prefix.
        parts: the stored tensors that it stands for, if it is not stored itself.
        fused_in: it is a part of a tensor of several experts in a block of this name (fused_experts.py); "" if not.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    version: FileVersion | None = field(default=None, compare=False, repr=False)
    base: bool = False
    fused_in: str = ""
    parts: Parts | None = None


def row_count(shape: tuple[int, ...]) -> int:
    """How many rows a stored tensor has: its first dimension; a single number is one row."""
    return shape[0] if shape else 1


class Parts(Protocol):
    """Stored tensors that stand for one of the model (scaled_weights.py)."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The stored tensors."""

    def rows(self, start: int, stop: int, read: Callable[[Entry, int, int], Tensor]) -> Tensor:
        """Rows start..stop of what they stand for; `read` reads rows of a stored one."""


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

    def read(self, name: str, start: int = 0, stop: int | None = None, *, buffers: Buffers | None = None) -> Tensor:
        """Rows start..stop of a tensor (its first dimension; all of it by default), in its entry's type.

        With `buffers`, valid until this thread reads with them again.

        Raises:
            CheckpointError: the file is truncated, cannot be read, or is another one than when its header was read.
        """
        entry = self.entries[name]
        stop = row_count(entry.shape) if stop is None else stop
        if entry.parts is not None:
            return entry.parts.rows(start, stop, lambda part, first, last: self._stored(part, name, first, last))
        return self._stored(entry, name, start, stop, buffers)

    def _stored(self, entry: Entry, name: str, start: int, stop: int, buffers: Buffers | None = None) -> Tensor:
        """Rows start..stop of what is stored at an entry; `name` is for messages."""
        import torch

        row = entry.nbytes // row_count(entry.shape)
        dtype: torch.dtype = getattr(torch, DTYPES[entry.dtype][0] if entry.dtype in DTYPES else _PARTS[entry.dtype])
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        tensor = torch.empty(shape, dtype=dtype) if buffers is None else buffers.take("stored", shape, dtype)
        buffer = tensor.flatten().view(torch.uint8).numpy().data.cast("B") if tensor.numel() else memoryview(b"")
        position, done = entry.offset + start * row, 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor(entry), [buffer[done:]], position + done)
            except OSError as error:
                raise UnreadableError(
                    "the file cannot be read", file=self.path / entry.file, tensor=name, found=error.strerror or error
                ) from None
            except ValueError as error:
                raise CheckpointError(
                    "the file cannot be read", file=self.path / entry.file, tensor=name, found=error
                ) from None
            if not count:
                raise CheckpointError("the file is truncated", file=self.path / entry.file, tensor=name,
                                      found=f"{position + done:,} bytes",
                                      expected=f"{entry.offset + entry.nbytes:,} bytes or more")  # fmt: skip
            done += count
        return tensor

    def check_unchanged(self) -> None:
        """Raise unless every file that was read is still what it was when its header was read.

        Raises:
            CheckpointError: one was written to meanwhile.
        """
        stored = (part for entry in self.entries.values() for part in (entry.parts.entries if entry.parts else [entry]))
        for entry in {entry.file: entry for entry in stored}.values():
            if entry.file in self._descriptors and file_version(self._descriptors[entry.file]) != entry.version:
                raise self._changed(entry)

    def _descriptor(self, entry: Entry) -> int:
        with self._lock:
            if entry.file not in self._descriptors:
                descriptor = open_regular(self.path / entry.file)
                if entry.version is not None and file_version(descriptor) != entry.version:
                    os.close(descriptor)
                    raise self._changed(entry)
                self._descriptors[entry.file] = descriptor
            return self._descriptors[entry.file]

    def _changed(self, entry: Entry) -> CheckpointError:
        return CheckpointError("this file was changed or replaced while it was being read", file=self.path / entry.file,
                               cure="wait until nothing writes to it, then run this again")  # fmt: skip

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def file_version(descriptor: int) -> FileVersion:
    """What changes when a file is replaced or written to."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors file, in file order. The safetensors library validates the header first.

    Raises:
        CheckpointError: corrupt, truncated, or not a safetensors file.
        UnreadableError: the operating system refuses.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as stream:
            version = file_version(stream.fileno())
            refuse_lfs_pointer(path, stream.read(LFS_SIZE))
            stream.seek(0)
            with safe_open(path, framework="np"):
                pass
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size), object_pairs_hook=_no_name_twice)
            header.pop("__metadata__", None)
            for name in header:
                if printable(name, line=True) != name:
                    raise ValueError(f"the name {name!r} holds control characters")
            entries = {
                name: _entry(path.name, name, info, start=8 + size, version=version)
                for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
            }
            with os.fdopen(
                open_regular(path), "rb"
            ) as again:  # what safetensors has validated must be what was read here
                if file_version(stream.fileno()) != version or file_version(again.fileno()) != version:
                    raise ValueError("it was replaced or written to while its header was read")
            return entries
    except OSError as error:
        raise UnreadableError("the file cannot be read", file=path, found=error.strerror or error) from None
    except (SafetensorError, ValueError, TypeError) as error:
        found, least, exact = _sizes(path)
        truncated = found < least
        differs = truncated or (exact and found > least)
        raise CheckpointError(
            "not a valid safetensors file" + (": it is truncated" if truncated else ""),
            file=path,
            found=f"{found:,} bytes ({error})" if differs else error,
            expected=f"{least:,} bytes{'' if exact else ' or more'}, by its header" if differs else None,
            cure="download it again, or save the model again; nothing was read from it",
        ) from None


def _sizes(path: Path) -> tuple[int, int, bool]:
    """(bytes of a file, bytes that it has by its header, whether it has no more); (0, 0, False) where none is told."""
    try:
        with os.fdopen(open_regular(path), "rb") as stream:
            found = os.fstat(stream.fileno()).st_size
            header = 8 + int.from_bytes(stream.read(8), "little") if found >= 8 else 8
            if found < header or header > _LARGEST_HEADER:  # the header itself is cut, or this is something else
                return (found, header, False) if header <= _LARGEST_HEADER else (0, 0, False)
            tensors = json.loads(stream.read(header - 8))
            ends = [info["data_offsets"][1] for name, info in tensors.items() if name != "__metadata__"]
            end = max(ends, default=0)
    except (OSError, HypercloneError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 0, 0, False
    return (found, header + end, True) if type(end) is int and end >= 0 else (0, 0, False)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; safetensors itself would silently take the last of two tensors with one name."""
    if len(content := dict(pairs)) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the header names {next(n for n in names if names.count(n) > 1)!r} twice")
    return content


def _entry(file: str, name: str, info: dict[str, Any], *, start: int, version: FileVersion) -> Entry:
    begin, end = info["data_offsets"]
    shape = tuple(info["shape"])
    # safetensors checks this too; a wrong size here would silently shift every row that follows.
    if info["dtype"] in DTYPES and end - begin != math.prod(shape) * DTYPES[info["dtype"]][1]:
        raise ValueError(f"{name} has {end - begin} bytes for shape {list(shape)} of {info['dtype']}")
    return Entry(file, info["dtype"], shape, start + begin, end - begin, version)
