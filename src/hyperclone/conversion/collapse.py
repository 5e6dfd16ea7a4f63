"""Undo a growth: the source's directory from a grown one and its receipt, bit for bit where the split was exact."""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperclone.conversion import receipt as receipts
from hyperclone.conversion.receipt import Receipt
from hyperclone.errors import CheckpointError, CollapseError
from hyperclone.expansion import grown_tensors
from hyperclone.expansion.expand import TensorMap, collapse_rows, rounding_bound
from hyperclone.io import fused_experts, hub, shards
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.io.files import to_json, user_path
from hyperclone.io.shards import TensorHeader
from hyperclone.io.streaming import Progress, digest, write_shards
from hyperclone.planning import planner
from hyperclone.planning.notes import listed
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.recipe import Noise


@dataclass(frozen=True)
class Collapsed:
    """What `collapse` has written.

    Attributes:
        path: where the model is.
        tensors: how many tensors it has.
        exact: every tensor has the hash that the receipt recorded for the source; None where it recorded none, or where
            the source was converted to another type first.
        reason: why it is not exact, or was not compared; "" if it is exact.
    """

    path: Path
    tensors: int
    exact: bool | None
    reason: str = ""


def collapse(
    grown: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shard_size: str | int = planner.DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Collapsed:
    """Write the model that a directory was grown from.

    Args:
        grown: a directory made by `grow`, not trained since: its copies must still agree.
        destination: the directory to create. It appears complete, or not at all.
        shard_size: largest weight file, in bytes or as "5GB".
        threads: readers and writers.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        CollapseError: no receipt, or the copies differ.
        HypercloneError: the directory cannot be read, or the destination cannot be written.
    """
    directory = hub.resolve(grown)
    receipt = receipts.read(directory)
    output = Checkpoint.open(directory, family=receipt.family if receipt is not None else None)
    if receipt is None:
        raise CollapseError(
            "this directory has no receipt, so what it was grown from is not known",
            file=directory / receipts.FILE,
            cure="collapse works on directories made by `hyperclone grow`",
        )
    plan = planner.make_plan(_source_headers(receipt, output), receipt.growth)
    _check_shapes(plan, output)
    originals = {tensor.source: tensor for tensor in plan.tensors if tensor.original and not tensor.init_std}
    headers = fused_experts.fuse(
        [_source_header(tensor, plan.omitted_prefix) for tensor in originals.values()], plan.fused_in
    )
    files = shards.lay_out(headers, shard_size=shard_size)
    target = Destination(
        user_path(destination),
        source=directory,
        fingerprint=f"collapse:{plan.fingerprint}:{output.identity}",
        nbytes=sum(shard.nbytes for shard in files),
        overwrite=False,
    )

    copies = _copies_to_check(plan)

    def pieces(name: str) -> Iterator[Tensor]:
        for part in _parts(originals[name], plan):
            collapsed = _collapse_tensor(originals[name], plan, output, part)
            _check_copies(copies.get(name, ()), originals[name], collapsed, plan, output, part)
            yield collapsed

    try:
        write_shards(files, target, pieces, stage="collapse", threads=threads, progress=progress)
        target.carry(output.carried_files, root=directory)
        target.write_text("config.json", to_json(_source_config(plan)))
        if (index := shards.index(files, headers)) is not None:
            target.write_text("model.safetensors.index.json", to_json(index))
        exact, reason = _compare_hashes(receipt, plan, target.partial)
        output.check_unchanged()
        target.publish()
    except CollapseError:  # no rerun could go on from there
        shutil.rmtree(target.partial, ignore_errors=True)
        raise
    finally:
        target.close()
    return Collapsed(target.target, len(originals), exact, reason)


def _check_shapes(plan: Plan, output: Checkpoint) -> None:
    """Raise unless the directory holds the tensors that its receipt describes."""
    for tensor in plan.tensors:
        entry = output.entries.get(tensor.name)
        if entry is None or entry.shape != tensor.shape:
            raise CheckpointError(
                "a tensor is not the one that the receipt describes",
                file=output.path,
                tensor=tensor.name,
                found=list(entry.shape) if entry else "missing",
                expected=list(tensor.shape),
            )


def _copies_to_check(plan: Plan) -> dict[str, list[TensorPlan]]:
    """By the name of a source, the tensors that copy it beside the first one: many (64 experts, added layers), or none.

    Routers have no source. They may even have been trained: while the experts agree, the function is the source's.
    """
    by_source: dict[str, list[TensorPlan]] = defaultdict(list)
    if plan.growth.recipe.noise is not Noise.GAUSSIAN:  # which would hide small changes
        for tensor in plan.tensors:
            if not tensor.init_std and not tensor.original:
                by_source[tensor.source].append(tensor)
    return by_source


def _check_copies(
    copies: Sequence[TensorPlan], original: TensorPlan, expected: Tensor, plan: Plan, output: Checkpoint,
    part: Sequence[tuple[range, range]],
) -> None:  # fmt: skip
    """Raise unless a part of each copy still collapses to what that part of the original does."""
    for tensor in copies:
        collapsed = _collapse_tensor(tensor, plan, output, part)
        if tensor.zero:
            agrees = not bool(collapsed.any())
        else:
            # An untied head and its embedding may be multiplied by different factors, and rounded differently.
            rounded = tensor.factors != original.factors and (tensor.rounds or original.rounds)
            agrees = _agree_to_rounding(collapsed, expected) if rounded else _agree(collapsed, expected, plan)
        if not agrees:
            raise _changed(tensor.name, f"it is no longer a copy of {original.source}")


def _compare_hashes(receipt: Receipt, plan: Plan, directory: Path) -> tuple[bool | None, str]:
    """`Collapsed.exact` of the weights in `directory`, and its reason.

    Raises:
        CollapseError: they differ from the source, and neither noise nor rounding explains it.
    """
    if not receipt.source_sha256:
        return None, "the receipt records none, since the model was grown without a proof"
    if receipt.growth.dtype is not None:
        return None, f"the source was converted to {receipt.growth.dtype} when it was grown"
    written = Checkpoint.open(directory)
    changed = next((name for name in written.entries if digest(written, name) != receipt.source_sha256.get(name)), None)
    if changed is not None and plan.growth.recipe.noise is not Noise.GAUSSIAN and not plan.rounds:
        raise _changed(changed, "its copies agree with each other, but not with the source: all were changed alike")
    return (True, "") if changed is None else (False, _why_not_exact(plan))


def _why_not_exact(plan: Plan) -> str:
    reasons = []
    if plan.growth.recipe.noise is Noise.GAUSSIAN:
        reasons.append("Gaussian noise sums to zero only up to rounding")
    if rounded := [tensor.name for tensor in plan.tensors if tensor.rounds]:
        count = "1 tensor was" if len(rounded) == 1 else f"{len(rounded)} tensors were"
        reasons.append(f"{count} multiplied by a factor and rounded ({listed(rounded)})")
    return " and ".join(reasons)


def _parts(tensor: TensorPlan, plan: Plan) -> list[list[tuple[range, range]]]:
    """`grown_tensors.pieces` of a tensor, in lists that collapse on their own: of several matrices, some at a time."""
    grown = grown_tensors.map_of(tensor, plan)
    pieces = list(grown_tensors.pieces(grown, tensor.shape, tensor.nbytes))
    return [[piece] for piece in pieces] if len(grown.dims) > 2 and not grown.dims[0].grown else [pieces]


def _collapse_tensor(tensor: TensorPlan, plan: Plan, output: Checkpoint, part: Sequence[tuple[range, range]]) -> Tensor:
    """A part of the source tensor, after checking that every copy of every row and column agrees on it."""
    grown = grown_tensors.map_of(tensor, plan)
    rows_map, columns = grown.rows, grown.columns
    units = rows_map.source[part[0][1].start : part[-1][1].stop]
    start, stop = int(units.min()), int(units.max()) + 1
    result = torch.empty(stop - start, columns.old, dtype=grown_tensors.stored_type(tensor))
    bounds = torch.zeros(stop - start, columns.old, dtype=torch.float64)  # of the row that stands in `result`
    for stored, rows in part:
        block = grown.as_matrix(output.read(tensor.name, stored.start, stored.stop))
        kept = rows_map.count[rows.start : rows.stop] > 0  # padding channels are no copies
        if not bool(kept.all()):
            block = block[kept]
        collapsed = _columns_collapsed(block, grown, tensor, plan)
        unit = rows_map.source[rows.start : rows.stop][kept] - start
        first = rows_map.number[rows.start : rows.stop][kept] == 0
        result[unit[first]] = collapsed[first]  # in every layout the first copy of a row comes before the others
        bound = None
        if not grown.exact_repeat:
            bound = rounding_bound(block, columns).double()
            bounds[unit[first]] = bound[first]
            bound = bound + bounds[unit]
        if not _agree(collapsed, result[unit], plan, bound=bound):
            raise _changed(tensor.name, "copies of the same output unit differ")
    if (queries := grown_tensors.query_rows(tensor)) is not None:
        result = (result.double() / (queries if result.shape[0] == 1 else queries[:, None])).to(result.dtype)
    return grown.as_source(result)


def _columns_collapsed(block: Tensor, grown: TensorMap, tensor: TensorPlan, plan: Plan) -> Tensor:
    """(R, D) -> (R, d): shares summed, or repeated columns checked to be equal; the factor is divided out."""
    columns = grown.columns
    if grown.exact_repeat:
        copied = columns.count > 0
        first = (copied & (columns.number == 0)).nonzero().flatten()
        collapsed = torch.empty(block.shape[0], columns.old, dtype=block.dtype)
        collapsed[:, columns.source[first]] = block[:, first]
        if not _agree(block[:, copied], collapsed[:, columns.source[copied]], plan):
            raise _changed(tensor.name, "copies of the same unit differ")
    else:
        collapsed = collapse_rows(block.double() + tensor.offset if tensor.offset else block, columns)
    if tensor.offset and grown.exact_repeat:
        collapsed = collapsed.double() + tensor.offset
    if tensor.factor != 1:
        collapsed = collapsed.double() / tensor.factor
    return (collapsed - tensor.offset if tensor.offset else collapsed).to(block.dtype)


def _agree(a: Tensor, b: Tensor, plan: Plan, *, bound: Tensor | None = None) -> bool:
    """Equal; with Gaussian noise, within what rounding may leave."""
    if not bool(a.isfinite().all() & b.isfinite().all()):
        return False
    if plan.growth.recipe.noise is not Noise.GAUSSIAN or bound is None:
        return a.equal(b)
    # Each side is off by at most its own bound (`bound` is their sum), then rounded to the stored type.
    return bool(((a.double() - b.double()).abs() <= bound + torch.finfo(a.dtype).eps * b.double().abs()).all())


def _agree_to_rounding(a: Tensor, b: Tensor) -> bool:
    """Equal, except that one of them was multiplied and divided by a factor, with rounding each time."""
    info = torch.finfo(a.dtype)
    bound = 4 * info.eps * (b.double().abs() + info.smallest_normal)
    return bool(((a.double() - b.double()).abs() <= bound).all())


def _changed(name: str, why: str) -> CollapseError:
    return CollapseError(
        "the copies have diverged, so this is no longer a grown model of its source",
        tensor=name,
        found=why,
        cure="only a directory that was not trained or changed since it was grown can be collapsed",
    )


def _source_headers(receipt: Receipt, output: Checkpoint) -> hub.Headers:
    """The source's config and headers: shapes by the receipt, types as in the output."""
    # Which output tensor each source tensor went into follows from a plan, and does not depend on types.
    imagined = hub.Headers.from_config(receipt.source_config, user_family=receipt.family)
    entries = {}
    for tensor in receipt.plan.tensors:
        if tensor.original and not tensor.init_std:
            if (entry := output.entries.get(tensor.name)) is None:
                raise CheckpointError("a tensor is missing", file=output.path, tensor=tensor.name)
            shape = imagined.entries[tensor.source].shape
            entries[tensor.source] = replace(entry, shape=shape, nbytes=0)
    return replace(imagined, entries=entries)


def _source_header(tensor: TensorPlan, omitted_prefix: str) -> TensorHeader:
    """The tensor that a plan's tensor grew from, as it is to be stored."""
    nbytes = tensor.nbytes // math.prod(tensor.shape) * math.prod(tensor.source_shape)
    stored_name = tensor.source.removeprefix(omitted_prefix)
    return TensorHeader(tensor.source, tensor.dtype, tensor.source_shape, nbytes, stored_name)


def _source_config(plan: Plan) -> dict[str, Any]:
    config = dict(plan.source_config)
    for field in planner.DTYPE_FIELDS:
        if plan.growth.dtype and field in plan.config:
            config[field] = plan.config[field]
    return config
