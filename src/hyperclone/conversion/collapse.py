"""Undo a growth: the source's directory from a grown one and its receipt, bit for bit where the split was exact."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError, CollapseError
from hyperclone.expansion import grown_tensors
from hyperclone.expansion.expand import TensorMap, collapse_rows, rounding_bound
from hyperclone.io import hub, shards
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.io.files import to_json
from hyperclone.io.shards import TensorHeader
from hyperclone.io.streaming import Progress, digest, slices, write_shards
from hyperclone.io.tensor_files import Entry
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.recipe import Noise


@dataclass(frozen=True)
class Collapsed:
    """What `collapse` has done.

    Attributes:
        path: where the model is.
        tensors: how many tensors it has.
        exact: every tensor has the hash that the receipt recorded of the source; None where it recorded none or the
            source was converted to another type first.
    """

    path: Path
    tensors: int
    exact: bool | None


def collapse(
    grown: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shard_size: str | int = planner.DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Collapsed:
    """Write the model that a grown directory came from.

    Args:
        grown: a directory made by `grow`, not trained since: its copies must still agree.
        destination: the directory to create. It appears complete, or not at all.
        shard_size: largest weight file, in bytes or as "5GB".
        threads: readers and writers.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        CollapseError: no receipt, or the copies have moved apart.
        HypercloneError: the directory cannot be read, or the destination cannot be written.
    """
    place = hub.resolve(grown)
    told = receipt.read(place)
    output = Checkpoint.open(place, family=told.family if told is not None else None)
    if told is None:
        raise CollapseError(
            "this directory has no receipt, so what it was grown from is not known",
            file=place / receipt.FILE,
            cure="collapse works on directories made by `hyperclone grow`",
        )
    made = planner.make_plan(_source_headers(told, output), told.growth)
    for tensor in made.tensors:
        entry = output.entries.get(tensor.name)
        if entry is None or entry.shape != tensor.shape:
            raise CheckpointError(
                "a tensor is not the one that the receipt speaks of",
                file=place,
                tensor=tensor.name,
                found=list(entry.shape) if entry else "missing",
                expected=list(tensor.shape),
            )
    # Routers have no source. They may even have been trained: while the experts agree, the function is the source's.
    copies = [tensor for tensor in made.tensors if not tensor.init_std]
    by_source = {tensor.source: tensor for tensor in copies if tensor.original}
    content = [
        TensorHeader(t.source, t.dtype, t.source_shape, t.nbytes // math.prod(t.shape) * math.prod(t.source_shape))
        for t in by_source.values()
    ]
    files = shards.lay_out(content, shard_size=shard_size)
    target = Destination(
        Path(destination),
        source=place,
        fingerprint=f"collapse:{made.fingerprint}:{output.identity}",
        nbytes=sum(shard.nbytes for shard in files),
        overwrite=False,
    )

    def pieces(name: str) -> Iterator[Tensor]:
        yield _collapse_tensor(by_source[name], made, output)

    try:
        for tensor in copies:
            # What is not the first copy can only go back if it still is its source (Gaussian noise hides that).
            if not tensor.original and made.growth.recipe.noise is not Noise.GAUSSIAN:
                again = _collapse_tensor(tensor, made, output)
                same = (
                    torch.zeros_like(again) if tensor.zero else _collapse_tensor(by_source[tensor.source], made, output)
                )
                rounded = tensor.rounds != by_source[tensor.source].rounds  # Gemma's embedding, but not its untied head
                if not (_agree_to_rounding(again, same) if rounded else _agree(again, same, made)):
                    raise _apart(tensor.name, f"it no longer is the copy of {tensor.source} that it was")
        write_shards(files, target, pieces, stage="collapse", threads=threads, progress=progress)
        target.carry(output.carried_files, root=place)
        target.write_text("config.json", to_json(_source_config(made)))
        if (index := shards.index(files, content)) is not None:
            target.write_text("model.safetensors.index.json", to_json(index))
        exact = None
        if told.source_sha256 and told.growth.dtype is None:
            written = Checkpoint.open(target.partial)
            changed = next((n for n in written.entries if digest(written, n) != told.source_sha256.get(n)), None)
            exact = changed is None
            if changed is not None and told.growth.recipe.noise is not Noise.GAUSSIAN and not made.rounds:
                raise _apart(changed, "its copies agree, but not on what the source had: it has been changed together")
        target.publish()
    finally:
        target.close()
    return Collapsed(target.target, len(by_source), exact)


def _collapse_tensor(tensor: TensorPlan, made: Plan, output: Checkpoint) -> Tensor:
    """The source tensor, after checking that every copy of every row and column agrees on it."""
    grown = grown_tensors.map_of(tensor, made)
    rows_map, columns = grown.rows, grown.columns
    result = torch.empty(rows_map.old, columns.old, dtype=grown_tensors.stored_type(tensor))
    bounds = torch.zeros(rows_map.old, columns.old, dtype=torch.float64)  # of the row that stands in `result`
    whole = len(tensor.shape) == 1 or grown.transposed
    for rows in [range(rows_map.new)] if whole else slices(tensor.shape, tensor.nbytes):
        block = grown.as_matrix(output.read(tensor.name, *(() if whole else (rows.start, rows.stop))))
        kept = rows_map.count[rows.start : rows.stop] > 0  # new units that copy nothing have no say
        if not bool(kept.all()):
            block = block[kept]
        joined = _columns_joined(block, grown, tensor, made)
        unit = rows_map.source[rows.start : rows.stop][kept]
        first = rows_map.number[rows.start : rows.stop][kept] == 0
        result[unit[first]] = joined[first]  # in every layout the first copy of a row comes before the others
        bound = None
        if not grown.exact_repeat:
            bound = rounding_bound(block, columns).double()
            bounds[unit[first]] = bound[first]
            bound = bound + bounds[unit]
        if not _agree(joined, result[unit], made, bound=bound):
            raise _apart(tensor.name, "copies of the same output unit differ")
    if (queries := grown_tensors.query_rows(tensor)) is not None:
        result = (result.double() / (queries if result.shape[0] == 1 else queries[:, None])).to(result.dtype)
    return grown.as_stored(result, len(tensor.source_shape))


def _columns_joined(block: Tensor, grown: TensorMap, tensor: TensorPlan, made: Plan) -> Tensor:
    """(R, D) -> (R, d): shares summed, or repeated columns checked to be equal; the factor is taken out again."""
    columns = grown.columns
    if grown.exact_repeat:
        copied = columns.count > 0
        first = (copied & (columns.number == 0)).nonzero().flatten()
        joined = torch.empty(block.shape[0], columns.old, dtype=block.dtype)
        joined[:, columns.source[first]] = block[:, first]
        if not _agree(block[:, copied], joined[:, columns.source[copied]], made):
            raise _apart(tensor.name, "copies of the same unit differ")
    else:
        joined = collapse_rows(block.double() + tensor.offset if tensor.offset else block, columns)
    if tensor.offset and grown.exact_repeat:
        joined = joined.double() + tensor.offset
    if tensor.factor != 1:
        joined = joined.double() / tensor.factor
    return (joined - tensor.offset if tensor.offset else joined).to(block.dtype)


def _agree(a: Tensor, b: Tensor, made: Plan, *, bound: Tensor | None = None) -> bool:
    """Equal; with Gaussian noise, within what rounding may leave."""
    if not bool(a.isfinite().all() & b.isfinite().all()):
        return False
    if made.growth.recipe.noise is not Noise.GAUSSIAN or bound is None:
        return a.equal(b)
    # Each side is off by at most its own bound (`bound` is their sum), then rounded to the stored type.
    return bool(((a.double() - b.double()).abs() <= bound + torch.finfo(a.dtype).eps * b.double().abs()).all())


def _agree_to_rounding(a: Tensor, b: Tensor) -> bool:
    """Equal, but that a factor was put into one of them and taken out again, each time with rounding."""
    info = torch.finfo(a.dtype)
    bound = 4 * info.eps * (b.double().abs() + info.smallest_normal)
    return bool(((a.double() - b.double()).abs() <= bound).all())


def _apart(name: str, why: str) -> CollapseError:
    return CollapseError(
        "the copies have moved apart, so this is no longer a grown model of its source",
        tensor=name,
        found=why,
        cure="only a directory that was not trained or changed since it was grown can be collapsed",
    )


def _source_headers(told: receipt.Receipt, output: Checkpoint) -> hub.Headers:
    """The source as the receipt remembers it, in the types that the output has."""
    # Which output tensor each goes into is the plan's to say, and does not depend on types.
    bare = hub.Headers.from_config(told.source_config, user_family=told.family)
    entries = {}
    for tensor in planner.make_plan(bare, replace(told.growth, dtype="fp64")).tensors:
        if tensor.original and not tensor.init_std:
            if (entry := output.entries.get(tensor.name)) is None:
                raise CheckpointError("a tensor is missing", file=output.path, tensor=tensor.name)
            shape = bare.entries[tensor.source].shape
            entries[tensor.source] = Entry(entry.file, entry.dtype, shape, entry.offset, 0)
    return replace(bare, entries=entries)


def _source_config(made: Plan) -> dict[str, Any]:
    config = dict(made.source_config)
    for field in ("dtype", "torch_dtype"):
        if made.growth.dtype and field in made.config:
            config[field] = made.config[field]
    return config
