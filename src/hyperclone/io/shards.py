"""Output files laid out before a byte is written: which tensor goes where, at which offset.

The safetensors format is eight bytes of header length, a JSON header, then the tensors end to end. With every size
known from the plan, any thread can write any slice of any tensor at its own offset.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyperclone.errors import OptionError
from hyperclone.units import parse_size

_SMALLEST_WITHOUT_UNIT = 1_000_000  # bytes of a shard: below it a typed number probably lacks its GB


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in a safetensors header, before its offset is known.

    Attributes:
        name: in the whole model.
        dtype, shape, nbytes: as stored.
        stored_name: in the header, where that is another name.
        parts: the tensors of which it consists, end to end; () if it is one itself.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stored_name: str | None = None
    parts: tuple[TensorHeader, ...] = ()

    @property
    def name_in_file(self) -> str:
        """The name in the header."""
        return self.stored_name or self.name


@dataclass(frozen=True)
class Shard:
    """One output file.

    Attributes:
        file: its name.
        header: its first bytes, length prefix included.
        offsets: where each tensor starts in the file, by its name in the whole model.
        nbytes: its whole size.
    """

    file: str
    header: bytes
    offsets: dict[str, int]
    nbytes: int

    @property
    def largest_first(self) -> list[str]:
        """Tensor names by size, so that no thread is left with a large one at the end."""
        ends = dict(zip(sorted(self.offsets.values()), [*sorted(self.offsets.values())[1:], self.nbytes], strict=True))
        return sorted(self.offsets, key=lambda name: self.offsets[name] - ends[self.offsets[name]])


def lay_out(tensors: Sequence[TensorHeader], *, shard_size: str | int, stem: str = "model") -> list[Shard]:
    """Lay tensors out in files named `stem`..., in the given order, each up to `shard_size` bytes of tensors.

    A tensor is never split: one that is larger than `shard_size` has a file of its own.

    Raises:
        OptionError: the size is not a positive number of bytes, or it was typed without a unit and is tiny.
    """
    if isinstance(shard_size, str):
        typed, shard_size = shard_size, parse_size(shard_size)
        if typed.strip().isdigit() and shard_size < _SMALLEST_WITHOUT_UNIT:
            raise OptionError("this is a number of bytes, and a unit is probably missing", field="shard_size",
                              found=typed, expected=f"{typed.strip()}GB, or a number of bytes of a file")  # fmt: skip
    if isinstance(shard_size, bool) or not isinstance(shard_size, int) or shard_size < 1:
        raise OptionError("not a size", field="shard_size", found=shard_size, expected="5GB, or a number of bytes")
    groups: list[list[TensorHeader]] = [[]]
    remaining = shard_size
    for tensor in tensors:
        if groups[-1] and tensor.nbytes > remaining:
            groups.append([])
            remaining = shard_size
        groups[-1].append(tensor)
        remaining -= tensor.nbytes
    if len(groups) == 1:
        return [_shard(f"{stem}.safetensors", groups[0])]
    return [_shard(f"{stem}-{i:05}-of-{len(groups):05}.safetensors", g) for i, g in enumerate(groups, start=1)]


def _shard(file: str, tensors: list[TensorHeader]) -> Shard:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, starts = 0, {}
    # Wider types first keeps every tensor aligned to its own element size.
    for tensor in sorted(tensors, key=lambda t: -_width(t)):
        start = position
        for part in tensor.parts or (tensor,):
            starts[part.name] = start
            start += part.nbytes
        header[tensor.name_in_file] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    return Shard(file, prefix, {n: len(prefix) + start for n, start in starts.items()}, len(prefix) + position)


def _width(tensor: TensorHeader) -> int:
    return {"F64": 8, "F32": 4}.get(tensor.dtype, 2)


def index(shards: Sequence[Shard], tensors: Sequence[TensorHeader]) -> dict[str, Any] | None:
    """The content of model.safetensors.index.json; None for a single file."""
    if len(shards) == 1:
        return None
    names = {part.name: tensor.name_in_file for tensor in tensors for part in tensor.parts or (tensor,)}
    return {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
        "weight_map": dict(sorted((names[name], shard.file) for shard in shards for name in shard.offsets)),
    }
