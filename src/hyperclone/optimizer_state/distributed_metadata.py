"""What a torch distributed checkpoint says of its tensors, read from its `.metadata` without trusting it.

The file is a pickle, and torch loads it without restriction. A pickle calls what it names and sets attributes of what
it has, so a list of harmless classes does not make it safe: it could still change those classes. Here every name stands
for a class that is made for one load and only keeps what it is given, and only opcodes that torch's own metadata
consists of are carried out. What comes out is checked and becomes plain numbers.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from hyperclone.errors import CheckpointError

FILE = ".metadata"
_MOST_CHUNKS = 4096  # of a tensor that is split along several dimensions: pairs of them are compared
_LARGEST = 2**30  # bytes of metadata; a million shards take some 200 MB
_MODULE = "torch.distributed.checkpoint.metadata"
_NAMES = {
    *((_MODULE, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "PureWindowsPath"),
}  # fmt: skip
# Opcodes of plain data, of objects, and of the memo. None of them makes anything that is larger than its own text.
_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "EMPTY_LIST", "APPEND",
    "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL",
    "STACK_GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
})  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor.

    Attributes:
        offsets: (dimensions,) where it begins in the tensor.
        shape: its own.
        file: its name in the checkpoint's directory.
        start, nbytes: where it is in the file, as torch.save wrote it.
    """

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the checkpoint; its chunks fill it, and none overlaps another."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


def read(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a distributed checkpoint by its key; what is no tensor is left out.

    Raises:
        CheckpointError: the metadata is missing, corrupt or contradicts the files beside it.
    """
    file = directory / FILE
    try:
        return _tensors(directory, _unpickle(_bytes(file)))
    except Exception as error:  # a corrupt pickle can raise anything
        ours = isinstance(error, ValueError | OSError | pickle.UnpicklingError) and str(error)
        raise CheckpointError("not the metadata of a distributed checkpoint", file=file,
                              found=ours or f"a pickle that is read with {type(error).__name__}") from None  # fmt: skip


def _bytes(file: Path) -> bytes:
    # A FIFO without a writer would block in open.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise ValueError(f"no file of at most {_LARGEST} bytes")
        return stream.read(_LARGEST)


class _Object:
    """What a pickle makes where it names a class: what it was made of."""

    stands_for: tuple[str, str]
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> _Object:
        made = object.__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Makes `_Object`s of classes that exist for this load only."""

    def __init__(self, text: bytes) -> None:
        super().__init__(BytesIO(text))
        self._classes: dict[tuple[str, str], type[_Object]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES and not (module == "torch" and _dtype_named(name) is not None):
            raise pickle.UnpicklingError(f"metadata does not need {module}.{name}")
        if (module, name) not in self._classes:
            self._classes[module, name] = type(name, (_Object,), {"stands_for": (module, name)})
        return self._classes[module, name]


def _unpickle(text: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(text):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"metadata does not need the opcode {opcode.name}")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(text):
            raise pickle.UnpicklingError("an index of the memo is too large")  # it takes memory up to its last index
    return _Unpickler(text).load()


def _tensors(directory: Path, metadata: Any) -> dict[str, StoredTensor]:
    fields = _fields(metadata, "Metadata")
    entries = {
        str(key): _fields(entry, "TensorStorageMetadata")
        for key, entry in _dict(fields["state_dict_metadata"]).items()
        if _name(entry) != "BytesStorageMetadata"
    }
    stored = {}
    for index, info in _dict(fields["storage_data"]).items():
        where = _fields(index, "MetadataIndex")
        if where.get("offset") is not None:  # else it is no tensor
            stored[where["fqn"], _numbers(where["offset"])] = _fields(info, "_StorageInfo")
    if sum(len(_list(entry["chunks"])) for entry in entries.values()) > len(stored):
        raise ValueError("more chunks than are stored")
    lengths: dict[str, int] = {}
    return {key: _tensor(directory, key, entry, stored, lengths) for key, entry in entries.items()}


def _tensor(
    directory: Path, key: str, entry: dict[str, Any], stored: dict[Any, dict[str, Any]], lengths: dict[str, int]
) -> StoredTensor:
    dtype, shape = _dtype(entry["properties"]), _numbers(entry["size"])
    chunks = []
    for one in entry["chunks"]:
        fields = _fields(one, "ChunkStorageMetadata")
        offsets = _numbers(fields["offsets"])
        info = stored[key, offsets]
        if info.get("transform_descriptors"):
            raise ValueError(f"{key} is compressed or encrypted")
        file, (start, nbytes) = info["relative_path"], _numbers((info["offset"], info["length"]))
        chunk = Chunk(offsets, _numbers(fields["sizes"]), file, start, nbytes)
        if file not in lengths:
            lengths[file] = _length(directory, file)
        if start + nbytes > lengths[file] or math.prod(chunk.shape) * dtype.itemsize > nbytes:
            raise ValueError(f"{key} is larger than its part of {file}")
        chunks.append(chunk)
    _check_cover(key, shape, chunks)
    return StoredTensor(dtype, shape, tuple(chunks))


def _check_cover(key: str, shape: tuple[int, ...], chunks: Sequence[Chunk]) -> None:
    """Raise ValueError unless the chunks fill the tensor without overlap."""
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.shape) == len(shape) or any(
            offset + size > length for offset, size, length in zip(chunk.offsets, chunk.shape, shape, strict=True)
        ):
            raise ValueError(f"a chunk of {key} reaches outside of it")
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
        raise ValueError(f"the chunks of {key} do not fill it")
    filled = [chunk for chunk in chunks if math.prod(chunk.shape)]
    split = {i for chunk in filled for i, size in enumerate(chunk.shape) if size != shape[i]}
    if len(split) == 1:  # along one dimension: those that fill it, in order, have no gap
        (dim,) = split
        end = 0
        for chunk in sorted(filled, key=lambda chunk: chunk.offsets[dim]):
            if chunk.offsets[dim] != end:
                raise ValueError(f"the chunks of {key} overlap")
            end += chunk.shape[dim]
    elif len(filled) > _MOST_CHUNKS:
        raise ValueError(f"{key} has {len(filled)} chunks, split along several dimensions")
    elif len(filled) > 1:
        begin = torch.tensor([chunk.offsets for chunk in filled])
        end_ = begin + torch.tensor([chunk.shape for chunk in filled])
        overlap = ((begin[:, None] < end_[None]) & (begin[None] < end_[:, None])).all(-1)
        if int(overlap.sum()) != len(filled):  # each overlaps itself
            raise ValueError(f"the chunks of {key} overlap")


def _length(directory: Path, file: object) -> int:
    """Bytes of a file of the checkpoint."""
    if not isinstance(file, str) or Path(file).name != file:
        raise ValueError(f"{file!r} is no file of this directory")
    status = (directory / file).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file} is no regular file")
    return status.st_size


def _name(value: object) -> str | None:
    return value.stands_for[1] if isinstance(value, _Object) else None


def _fields(value: object, name: str) -> dict[str, Any]:
    """The attributes of an object of a class."""
    if isinstance(value, _Object) and _name(value) == name:
        return _dict(value.state)
    raise ValueError(f"no {name}")


def _dict(value: object) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError(f"{type(value).__name__} instead of a dict")


def _list(value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    raise ValueError(f"{type(value).__name__} instead of a list")


def _numbers(value: object) -> tuple[int, ...]:
    """A torch.Size, or a tuple of whole numbers, none of them negative."""
    if isinstance(value, _Object) and _name(value) == "Size":
        (value,) = value.arguments
    if (
        isinstance(value, tuple)
        and len(value) <= 64
        and all(isinstance(one, int) and 0 <= one < 2**48 for one in value)
    ):
        return tuple(int(one) for one in value)
    raise ValueError("no sizes")


def _dtype(properties: object) -> torch.dtype:
    """The type among the properties of a tensor, which are pickled as a tuple that begins with it."""
    if isinstance(properties, _Object) and _name(properties) == "TensorProperties":
        named = properties.state[0]
        module, name = named.stands_for if isinstance(named, type) and issubclass(named, _Object) else ("", "")
        if module == "torch" and (dtype := _dtype_named(name)) is not None:
            return dtype
    raise ValueError("a tensor without a type")


def _dtype_named(name: str) -> torch.dtype | None:
    """A type of torch, by its name there; nothing is imported for it."""
    found = vars(torch).get(name)
    return found if isinstance(found, torch.dtype) else None
