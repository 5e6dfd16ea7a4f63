"""Experts that are stored fused, as transformers has them in memory: seen one by one, and fused again when written.

All experts of a layer are two tensors, (experts, 2 x ffn, hidden) of gate and up, and (experts, hidden, ffn) of down.
Each expert's part of one is a run of bytes in it, so nothing has to be read to take them apart, and writing the parts
one after the other puts them together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError
from hyperclone.io.shards import TensorHeader
from hyperclone.io.tensor_files import Entry

_FUSED = re.compile(r"(?P<layer>.*\.)(?P<block>[^.]+)\.experts\.(?P<tensor>gate_up_proj|down_proj)")
_PART = re.compile(r"(?P<layer>.*\.)(?P<block>[^.]+)\.experts\.(?P<expert>\d+)\.(?P<part>[^.]+)\.weight")
# Parts of each fused tensor, in order, by the names that families give them.
_PARTS = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}


def take_apart(entries: Mapping[str, Entry], family: Family | None) -> dict[str, Entry]:
    """Stored tensors with every expert's tensors one by one, under the family's names, in file order.

    Raises:
        CheckpointError: an expert is stored in both ways.
    """
    names = {} if family is None else _family_names(family)
    apart: dict[str, Entry] = {}
    blocks = {f"{match['layer']}{match['block']}." for name in entries if (match := _FUSED.fullmatch(name))}
    for name, entry in entries.items():
        match = _FUSED.fullmatch(name)
        if match is None and names and (own := next((block for block in blocks if name.startswith(block)), None)):
            layer, block = own.removesuffix(".").rpartition(".")[::2]  # of Mixtral's, the router as well
            name = f"{layer}.{next(iter(names.values()))[0]}.{name.removeprefix(own)}"
        if match is None or match["tensor"] not in names or len(entry.shape) != 3 or 0 in entry.shape:
            apart[name] = entry
            continue
        block, parts = names[match["tensor"]]
        count, rows, columns = entry.shape
        shape, nbytes = (rows // len(parts), columns), entry.nbytes // count // len(parts)
        if rows % len(parts) or nbytes * count * len(parts) != entry.nbytes:
            apart[name] = entry  # refused by its name
            continue
        for number, (expert, part) in enumerate((e, p) for e in range(count) for p in parts):
            alone = f"{match['layer']}{block}.experts.{expert}.{part}.weight"
            if alone in entries:
                raise CheckpointError("an expert is stored twice: on its own, and fused with the others of its layer",
                                      file=entry.file, tensor=alone, found=f"{entries[alone].file}, and {name}",
                                      expected="one of them", cure="remove the older of the two")  # fmt: skip
            apart[alone] = replace(
                entry, shape=shape, offset=entry.offset + number * nbytes, nbytes=nbytes, fused_in=match["block"]
            )
    return apart


def fuse(headers: Sequence[TensorHeader], block: str) -> list[TensorHeader]:
    """Headers of tensors with the experts' fused, each in the place of its first part.

    Args:
        headers: one by one.
        block: the part of the fused names before `experts`, such as `mlp`; "" leaves everything as it is.
    """
    if not block:
        return list(headers)
    groups: dict[str, list[tuple[tuple[int, int], TensorHeader]]] = {}
    blocks = {f"{match['layer']}{match['block']}." for h in headers if (match := _PART.fullmatch(h.name_in_file))}
    for header in headers:
        match = _PART.fullmatch(header.name_in_file)
        found = None if match is None else _place(match["part"])
        if match is None or found is None:
            whole = replace(header, stored_name=_in_block(header.name_in_file, blocks, block))
            groups[whole.name_in_file] = [((0, 0), whole)]
        else:
            tensor, position = found
            key = f"{match['layer']}{block}.experts.{tensor}"
            groups.setdefault(key, []).append(((int(match["expert"]), position), header))
    return [_fused(name, [header for _, header in sorted(parts, key=lambda part: part[0])], block)
            for name, parts in groups.items()]  # fmt: skip


def _fused(name: str, parts: list[TensorHeader], block: str) -> TensorHeader:
    first = parts[0]
    if name == first.name_in_file:
        return first
    rows, columns = first.shape
    per_expert = 2 if name.endswith("gate_up_proj") else 1
    shape = (len(parts) // per_expert, per_expert * rows, columns)
    nbytes = sum(part.nbytes for part in parts)
    assert math.prod(shape) * first.nbytes == nbytes * rows * columns, (name, shape)
    return TensorHeader(name, first.dtype, shape, nbytes, parts=tuple(parts))


def _in_block(name: str, blocks: set[str], block: str) -> str:
    """The name of another tensor of a block of experts (its router), in a block of this name."""
    own = next((one for one in blocks if name.startswith(one)), None)
    if own is None:
        return name
    return f"{own.removesuffix('.').rpartition('.')[0]}.{block}.{name.removeprefix(own)}"


def _place(part: str) -> tuple[str, int] | None:
    """The fused tensor that a part belongs to, and its position there."""
    for tensor, spellings in _PARTS.items():
        for parts in spellings:
            if part in parts:
                return tensor, parts.index(part)
    return None


def _family_names(family: Family) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each fused tensor that a family can have: (the part of its names before `experts`, the parts' names)."""
    stored = [match for line in family.lines if (match := _PART.fullmatch(line.pattern.replace("{e}", "0")))]
    names = {}
    for tensor, spellings in _PARTS.items():
        for parts in spellings:
            blocks = {match["block"] for match in stored if match["part"] in parts}
            if len(blocks) == 1 and {match["part"] for match in stored} >= set(parts):
                names[tensor] = (blocks.pop(), parts)
    return names
