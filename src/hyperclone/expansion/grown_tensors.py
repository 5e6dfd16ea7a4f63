"""One output tensor at a time: read its source, expand it, and yield it in slices.

Memory is a few slices, whatever the tensor's size. The noise depends on positions only, so the bytes depend on
neither the slices nor the order of work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError
from hyperclone.expansion import exact_split
from hyperclone.expansion.expand import TensorMap, expand_rows, tensor_map
from hyperclone.expansion.padding import Padding
from hyperclone.expansion.query_rows import row_factors
from hyperclone.io.buffers import Buffers
from hyperclone.io.source import Weights
from hyperclone.io.streaming import slices
from hyperclone.io.tensor_files import DTYPES, row_count
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.recipe import Noise


def map_of(tensor: TensorPlan, plan: Plan) -> TensorMap:
    """Which old row and column each new one of a planned tensor copies."""
    padding = {axis: Padding(value) for axis, value in plan.padding.items()}
    return tensor_map(tensor.layout, plan.sizes, padding, shift=tensor.bias, order=plan.growth.order)


def grown_slices(
    tensor: TensorPlan, plan: Plan, source: Weights, *, buffers: Buffers | None = None, fast: bool = False
) -> Iterator[Tensor]:
    """The grown tensor in stored order, in pieces of about SLICE_BYTES.

    With `buffers`, a piece is valid until the next one is taken. `fast`: with the compiled kernels.
    """
    if tensor.zero:
        for rows in slices(tensor.shape, tensor.nbytes):
            yield torch.zeros((len(rows), *tensor.shape[1:]), dtype=stored_type(tensor))
        return
    grown, recipe = map_of(tensor, plan), plan.growth.recipe
    splits_noisily = recipe.noise is Noise.GAUSSIAN and not grown.exact_repeat
    power = _power(tensor, source) if splits_noisily or grown.needs_power else None
    mean = mean_row(tensor, source, grown) if grown.needs_mean else None
    for _, rows in pieces(grown, tensor.shape, tensor.nbytes):
        block, index = rows_and_index(tensor, source, grown, rows, check=True, buffers=buffers)
        out = None if buffers is None else buffers.take("grown", (len(rows), grown.columns.new), block.dtype)
        block = expand_rows(
            block, grown, recipe, name=tensor.name, rows=rows, index=index, power=power, mean=mean, out=out, fast=fast
        )
        yield without_offset(tensor, grown.as_stored(block))


def pieces(grown: TensorMap, shape: tuple[int, ...], nbytes: int) -> Iterator[tuple[range, range]]:
    """(stored rows, the rows of the matrix in them) of a grown tensor, about SLICE_BYTES at a time if that is possible.

    Args:
        grown: its map.
        shape, nbytes: as stored.
    """
    if grown.whole:
        yield range(row_count(shape)), range(grown.rows.new)
        return
    _, count = grown.rows_per_stored
    for stored in slices(shape, nbytes):
        yield stored, range(stored.start * count, stored.stop * count)


def rows_and_index(
    tensor: TensorPlan,
    source: Weights,
    grown: TensorMap,
    rows: range,
    *,
    check: bool = False,
    buffers: Buffers | None = None,
) -> tuple[Tensor, Tensor]:
    """Source rows (S, d_in), and (len(rows),) which of them each of some rows of the grown matrix copies."""
    read = _source_rows if check else source_rows
    needed = grown.rows.source[rows.start : rows.stop]
    if grown.whole:
        return grown.as_matrix(read(tensor, source, buffers=buffers)), needed
    count, _ = grown.rows_per_stored
    first, last = int(needed.min()) // count, int(needed.max()) // count
    return grown.as_matrix(read(tensor, source, first, last + 1, buffers)), needed - first * count


def source_rows(
    tensor: TensorPlan, source: Weights, start: int = 0, stop: int | None = None, buffers: Buffers | None = None
) -> Tensor:
    """Rows of a tensor's source as they are grown: times its factor, in the output's type.

    Gains with an offset are returned in fp64, offset included: what their shares sum to is seldom a number of the type.
    """
    rows = _multiplied(tensor, source.read(tensor.source, start, stop, buffers=buffers), start, stop)
    needed = rows.dtype if tensor.offset else stored_type(tensor)
    return rows if rows.dtype == needed else rows.to(needed)


def rounding_error(tensor: TensorPlan, rows: Tensor, start: int, stop: int) -> float:
    """Largest |stored - source times factor| in rows of a tensor without an offset, whose values are rounded once.

    Args:
        tensor: the planned tensor.
        rows: (stop - start, ...) of its source, as stored.
        start, stop: which rows these are.
    """
    exact = _multiplied(tensor, rows, start, stop).double()
    gap = (exact.to(stored_type(tensor)).double() - exact).abs().nan_to_num(0.0)  # NaN - NaN, inf - inf
    return float(gap.max()) if gap.numel() else 0.0


def _multiplied(tensor: TensorPlan, rows: Tensor, start: int, stop: int | None) -> Tensor:
    """Rows of the source from `start` to `stop` times the tensor's factors, in fp64 where they are not 1."""
    if tensor.offset:
        return (rows.double() + tensor.offset) * tensor.factor
    if tensor.factor != 1:
        rows = rows.double() * tensor.factor
    if (queries := query_rows(tensor)) is not None:
        rows = rows.double() * (
            queries if tensor.layout.reads == 0 else queries[start:stop].view(-1, *[1] * (rows.dim() - 1))
        )
    return rows


def query_rows(tensor: TensorPlan) -> Tensor | None:
    """(d_out,) fp64: what each old row is multiplied by where it is a query; None if there are no queries."""
    if tensor.queries is None:
        return None
    out = 1 if tensor.layout.reads == 0 else 0
    return row_factors(tensor.layout.dims[out], tensor.queries)


def stored_type(tensor: TensorPlan) -> torch.dtype:
    """The torch type of a planned tensor."""
    dtype: torch.dtype = getattr(torch, DTYPES[tensor.dtype][0])
    return dtype


def without_offset(tensor: TensorPlan, grown: Tensor) -> Tensor:
    """Gains as they are stored; anything else as it is."""
    return (grown - tensor.offset).to(stored_type(tensor)) if tensor.offset else grown


def mean_row(tensor: TensorPlan, source: Weights, grown: TensorMap) -> Tensor:
    """(d_in,) mean of a tensor's source rows, in fp64."""
    if grown.whole:
        return grown.as_matrix(source_rows(tensor, source)).double().mean(0)
    assert len(grown.dims) == 2, tensor.name  # each of several matrices would need its own mean (family_file.py)
    total = torch.zeros(grown.columns.old, dtype=torch.float64)
    for rows in slices(tensor.source_shape, source.entries[tensor.source].nbytes):
        total += source_rows(tensor, source, rows.start, rows.stop).double().sum(0)
    return total / grown.rows.old


def _source_rows(
    tensor: TensorPlan, source: Weights, start: int = 0, stop: int | None = None, buffers: Buffers | None = None
) -> Tensor:
    """Rows of a tensor's source, checked to be finite before and after conversion."""
    rows = source_rows(tensor, source, start, stop, buffers)
    if not exact_split.all_finite(rows):
        stored = source.read(tensor.source, start, stop)
        bad = (~rows.isfinite()).nonzero()[0].tolist()
        where = ", ".join(str(i + start if axis == 0 else i) for axis, i in enumerate(bad))
        finite = bool(stored[tuple(bad)].isfinite())
        raise CheckpointError(
            f"a weight does not fit into {tensor.dtype}" if finite else "a weight is not a finite number",
            file=source.entries[tensor.source].file,
            tensor=f"{tensor.source}[{where}]",
            found=float(stored[tuple(bad)]),
            expected="a finite number",
            cure="choose a --dtype with more range" if finite else "the checkpoint is damaged or training diverged",
        )
    return rows


def _power(tensor: TensorPlan, source: Weights) -> float:
    """Mean square of the source tensor in fp64: row by row, and exactly over the rows, so that slices do not matter."""
    sums: list[float] = []
    for rows in slices(tensor.source_shape, source.entries[tensor.source].nbytes):
        block = source_rows(tensor, source, rows.start, rows.stop)
        sums += block.double().square().reshape(-1, block.shape[-1] if block.dim() > 1 else 1).sum(1).tolist()
    return math.fsum(sums) / math.prod(tensor.source_shape)


def loudest_noise(tensor: TensorPlan, plan: Plan, source: Weights) -> float:
    """An upper bound of any share's Gaussian noise: six standard deviations of the loudest expansion's."""
    return 6 * math.sqrt(_power(tensor, source) * 10 ** (-plan.growth.snr_db / 10))


def check_tie(source: Weights, head: str, embedding: str) -> None:
    """Raise unless a head that is stored although the config ties it equals the embedding.

    Raises:
        CheckpointError: they differ.
    """
    if not _equal(source, head, embedding):
        raise CheckpointError(
            "the config ties the head to the embedding, but both are stored and they differ",
            file="config.json",
            field="tie_word_embeddings",
            tensor=head,
            found="true",
            expected=f"{head} equal to {embedding}",
            cure='set "tie_word_embeddings": false if the head is a tensor of its own; remove it from the file if not',
        )


def _equal(source: Weights, first: str, second: str) -> bool:
    a, b = source.entries[first], source.entries[second]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return all(
        bool(source.read(first, rows.start, rows.stop).equal(source.read(second, rows.start, rows.stop)))
        for rows in slices(a.shape, a.nbytes)
    )
