"""Reading a torch distributed checkpoint without a process group: its tensors, or an optimizer state.

accelerate and FSDP save them: a `.metadata` file and shards, with keys such as `model.<parameter>` in one directory and
`optimizer.state.<parameter>.exp_avg` in another. torch reads the shards with weights_only=True. The metadata is a
pickle, which torch loads without restriction. Here only the few classes that metadata consists of are allowed, so that
it cannot run code. Other pickled bytes in the checkpoint are never opened.
"""

from __future__ import annotations

import pickle
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from hyperclone.errors import CheckpointError
from hyperclone.hf.parameter_names import unwrapped_name

METADATA = ".metadata"
_KEY = re.compile(r"(?:.*?\.)?state\.(?P<name>.+)\.(?P<kind>\w+)")
_METADATA_MODULE = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA_MODULE, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}  # fmt: skip


class _Metadata(pickle.Unpickler):
    """Unpickles metadata and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _ALLOWED
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"metadata does not need {module}.{name}")


class _Reader(FileSystemReader):
    """torch's reader with metadata that has already been loaded, safely."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class DistributedTensors:
    """The tensors in a distributed checkpoint directory, each read as a whole on demand.

    Attributes:
        file: the metadata.
        entries: the metadata of every tensor, by key.
    """

    def __init__(self, path: Path) -> None:
        """Read the metadata.

        Raises:
            CheckpointError: it is not metadata.
        """
        self.file = path / METADATA
        try:
            with self.file.open("rb") as stream:
                metadata = _Metadata(stream).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"found a {type(metadata).__name__}")
        except Exception as error:  # a corrupt pickle can raise anything
            raise CheckpointError("not the metadata of a distributed checkpoint", file=self.file,
                                  found=error) from None  # fmt: skip
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        self._reader, self._lock = _Reader(path, metadata), threading.Lock()
        self.entries = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def like(self, key: str) -> Tensor:
        """A tensor's shape and type, on device meta."""
        entry = self.entries[key]
        return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")

    def read(self, key: str) -> Tensor:
        """The whole tensor.

        Raises:
            CheckpointError: a shard is corrupt or missing.
        """
        value = torch.empty_like(self.like(key), device="cpu")
        try:
            # It warns that there is no process group; warning filters are shared by all threads, hence the lock.
            with self._lock, warnings.catch_warnings(action="ignore"):
                load({key: value}, storage_reader=self._reader, no_dist=True)
        except Exception as error:  # torch raises errors of its own classes
            raise CheckpointError("a shard cannot be read", file=self.file, tensor=key, found=error) from error
        return value


class DistributedState:
    """The optimizer state in a distributed checkpoint directory."""

    def __init__(self, path: Path) -> None:
        """Read the metadata.

        Raises:
            CheckpointError: it is not metadata, or has no optimizer state.
        """
        self._tensors = DistributedTensors(path)
        self.file = self._tensors.file
        self._keys = {
            (unwrapped_name(match["name"]), match["kind"]): key
            for key in self._tensors.entries
            if (match := _KEY.fullmatch(key))
        }
        if not self._keys:
            raise CheckpointError("this distributed checkpoint holds no optimizer state", file=path,
                                  expected="keys such as optimizer.state.<parameter>.exp_avg")  # fmt: skip
        self.settings: list[dict[str, Any]] = []  # pickled, so not opened
        self.steps = {name: int(self.tensor(name, kind)) for name, kind in self._keys if kind == "step"}
        self.moments: dict[str, dict[str, Tensor]] = {}
        for (name, kind), key in self._keys.items():
            if kind != "step":
                self.moments.setdefault(name, {})[kind] = self._tensors.like(key)

    def tensor(self, name: str, kind: str) -> Tensor:
        """A moment of a parameter."""
        return self._tensors.read(self._keys[name, kind])
