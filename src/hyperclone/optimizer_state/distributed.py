"""Reading a torch distributed checkpoint without a process group: its tensors, or an optimizer state.

accelerate and FSDP save them: a `.metadata` file and shards, with keys such as `model.<parameter>` in one directory
and `optimizer.state.<parameter>.exp_avg` in another.
The shards are read with weights_only=True by torch itself. The metadata is a pickle, which torch loads without
restriction; here it is loaded with the few classes that metadata consists of, and nothing else, so that it cannot run
code. Whatever else the checkpoint holds as pickled bytes is never opened.
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
    """Metadata and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _ALLOWED
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"metadata does not need {module}.{name}")


class _Reader(FileSystemReader):
    """torch's reader, given metadata that has been loaded once, and safely."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class DistributedTensors:
    """The tensors in a distributed checkpoint directory, each read whole when it is asked for.

    Attributes:
        file: the metadata.
        entries: what it says of every tensor, by its key.
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
        except Exception as error:  # a damaged pickle can raise anything
            raise CheckpointError("this is no metadata of a distributed checkpoint", file=self.file,
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
        """A tensor, whole.

        Raises:
            CheckpointError: a shard is damaged or gone.
        """
        value = torch.empty_like(self.like(key), device="cpu")
        try:
            # It warns that there is no process group; what is warned about is a setting of all threads together.
            with self._lock, warnings.catch_warnings(action="ignore"):
                load({key: value}, storage_reader=self._reader, no_dist=True)
        except Exception as error:  # torch wraps what goes wrong in there in its own
            raise CheckpointError("a shard cannot be read", file=self.file, tensor=key, found=error) from error
        return value


class DistributedState:
    """The optimizer state in a distributed checkpoint directory."""

    def __init__(self, path: Path) -> None:
        """Read the metadata.

        Raises:
            CheckpointError: it is not metadata, or speaks of no optimizer state.
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
        self.settings: list[dict[str, Any]] = []  # pickled in there, so not opened
        self.steps = {name: int(self.tensor(name, kind)) for name, kind in self._keys if kind == "step"}
        self.moments: dict[str, dict[str, Tensor]] = {}
        for (name, kind), key in self._keys.items():
            if kind != "step":
                self.moments.setdefault(name, {})[kind] = self._tensors.like(key)

    def tensor(self, name: str, kind: str) -> Tensor:
        """A moment, whole."""
        return self._tensors.read(self._keys[name, kind])
