"""Reading a torch distributed checkpoint without a process group: its tensors, or an optimizer state.

accelerate and FSDP save them: a `.metadata` file and shards, with keys such as `model.<parameter>` in one directory and
`optimizer.state.<parameter>.exp_avg` in another. The metadata is read as data (distributed_metadata.py). Each chunk of
a tensor is what torch.save wrote, and is loaded with weights_only=True. Other pickled bytes in the checkpoint are never
opened.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError, reason
from hyperclone.hf.parameter_names import unwrapped_name
from hyperclone.optimizer_state import distributed_metadata
from hyperclone.optimizer_state.distributed_metadata import Chunk, StoredTensor
from hyperclone.optimizer_state.torch_files import is_plain, load, steps_of

METADATA = distributed_metadata.FILE
_KEY = re.compile(r"(?:.*?\.)?state\.(?P<name>.+)\.(?P<kind>\w+)")


class DistributedTensors:
    """The tensors in a distributed checkpoint directory, each read as a whole on demand.

    Attributes:
        file: the metadata.
        entries: what is stored of every tensor, by key.
    """

    def __init__(self, path: Path) -> None:
        """Read the metadata.

        Raises:
            CheckpointError: it is missing, corrupt or contradicts the shards.
        """
        self.file = path / METADATA
        self.entries: dict[str, StoredTensor] = distributed_metadata.read(path)

    def like(self, key: str) -> Tensor:
        """A tensor's shape and type, on device meta."""
        entry = self.entries[key]
        return torch.empty(entry.shape, dtype=entry.dtype, device="meta")

    def read(self, key: str) -> Tensor:
        """The whole tensor.

        Raises:
            CheckpointError: a shard is corrupt or missing.
        """
        entry = self.entries[key]
        value = torch.empty(entry.shape, dtype=entry.dtype)
        for chunk in entry.chunks:
            part = value[tuple(slice(o, o + size) for o, size in zip(chunk.offsets, chunk.shape, strict=True))]
            part.copy_(self._read_chunk(key, chunk, entry.dtype))
        return value

    def _read_chunk(self, key: str, chunk: Chunk, dtype: torch.dtype) -> Tensor:
        file = self.file.with_name(chunk.file)
        try:
            tensor: Tensor = load(io.BytesIO(_read_exactly(file, chunk.start, chunk.nbytes)))
            if not is_plain(tensor) or (tensor.dtype, tuple(tensor.shape)) != (dtype, chunk.shape):
                raise ValueError("another tensor than the metadata says")
        except Exception as error:  # zip, pickle and torch raise different ones
            raise CheckpointError("a shard of this distributed checkpoint is corrupt or truncated", file=file,
                                  tensor=key, found=reason(error),
                                  cure="copy the checkpoint again") from None  # fmt: skip
        return tensor


def _read_exactly(file: Path, start: int, nbytes: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        content = stream.read(nbytes)
        size = os.fstat(stream.fileno()).st_size
    if len(content) < nbytes:
        raise ValueError(f"the file has {size:,} bytes, and the tensor ends at {start + nbytes:,}")
    return content


class DistributedState:
    """The optimizer state in a distributed checkpoint directory."""

    def __init__(self, path: Path) -> None:
        """Read the metadata and the numbers of steps.

        Raises:
            CheckpointError: it is not metadata, has no optimizer state, or is corrupt.
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
        self.steps = {
            name: steps_of(self._step(key), file=self.file, name=name)
            for (name, kind), key in self._keys.items()
            if kind == "step"
        }
        self.moments: dict[str, dict[str, Tensor]] = {}
        for (name, kind), key in self._keys.items():
            if kind != "step":
                self.moments.setdefault(name, {})[kind] = self._tensors.like(key)

    def tensor(self, name: str, kind: str) -> Tensor:
        """A moment of a parameter."""
        return self._tensors.read(self._keys[name, kind])

    def _step(self, key: str) -> Tensor:
        """A number of steps; only the shape of what is no single number."""
        like = self._tensors.like(key)
        return self._tensors.read(key) if like.numel() == 1 else like
