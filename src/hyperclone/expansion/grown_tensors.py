"""One output tensor at a time: read its source, expand it, and hand it on in slices.

Memory is a few slices, whatever the tensor's size. The noise depends on positions only, so the bytes depend on
neither the slices nor the order of work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.expansion.expand import TensorMap, expand, expand_rows, tensor_map
from hyperclone.expansion.padding import Fill
from hyperclone.expansion.query_rows import row_factors
from hyperclone.io.source import Weights
from hyperclone.io.streaming import slices
from hyperclone.io.tensor_files import DTYPES
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.recipe import Noise


def map_of(tensor: TensorPlan, made: Plan) -> TensorMap:
    """Which old row and column each new one of a planned tensor copies."""
    fills = {axis: Fill(fill) for axis, fill in made.padding.items()}
    return tensor_map(tensor.layout, made.sizes, fills, shift=tensor.bias)


def grown_slices(tensor: TensorPlan, made: Plan, origin: Weights) -> Iterator[Tensor]:
    """The grown tensor in stored order, in pieces of about SLICE_BYTES."""
    if tensor.zero:
        for rows in slices(tensor.shape, tensor.nbytes):
            yield torch.zeros((len(rows), *tensor.shape[1:]), dtype=stored_type(tensor))
        return
    grown, recipe = map_of(tensor, made), made.growth.recipe
    splits_noisily = recipe.noise is Noise.GAUSSIAN and not grown.exact_repeat
    power = _power(tensor, origin) if splits_noisily or grown.needs_power else None
    mean = mean_row(tensor, origin, grown) if grown.needs_mean else None
    if len(tensor.shape) == 1 or grown.transposed:
        whole = _source_rows(tensor, origin)
        yield without_offset(tensor, expand(whole, grown, recipe, name=tensor.name, power=power, mean=mean))
        return
    for rows in slices(tensor.shape, tensor.nbytes):
        block = gather(tensor, origin, grown.rows, rows, check=True)
        yield expand_rows(block, grown, recipe, name=tensor.name, rows=rows, power=power, mean=mean)


def gather(tensor: TensorPlan, origin: Weights, rows_map: CopyMap, rows: range, *, check: bool = False) -> Tensor:
    """The source row of each of some new rows: (len(rows), d_in)."""
    wanted = rows_map.source[rows.start : rows.stop]
    first, last = int(wanted.min()), int(wanted.max())
    block = (_source_rows if check else source_rows)(tensor, origin, first, last + 1)
    # Rows of one run of copies stand in the file as they are needed; anything else is gathered.
    return block if bool((wanted.diff() == 1).all()) else block[wanted - first]


def source_rows(tensor: TensorPlan, origin: Weights, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a tensor's source as they are grown: times its factor, in the output's type.

    Gains with an offset are returned in fp64, offset included: what their shares sum to is seldom a number of the type.
    """
    rows = origin.read(tensor.source, start, stop)
    if tensor.offset:
        return (rows.double() + tensor.offset) * tensor.factor
    if tensor.factor != 1:
        rows = rows.double() * tensor.factor
    if (queries := query_rows(tensor)) is not None:
        rows = rows.double() * (
            queries if tensor.layout.reads == 0 else queries[start:stop].view(-1, *[1] * (rows.dim() - 1))
        )
    wanted = stored_type(tensor)
    return rows if rows.dtype == wanted else rows.to(wanted)


def query_rows(tensor: TensorPlan) -> Tensor | None:
    """(d_out,) fp64: what each old row is multiplied by where queries are (heads.py); None if nowhere."""
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


def mean_row(tensor: TensorPlan, origin: Weights, grown: TensorMap) -> Tensor:
    """(d_in,) mean of a tensor's source rows, in fp64."""
    if grown.transposed or len(tensor.shape) == 1:
        return grown.as_matrix(source_rows(tensor, origin)).double().mean(0)
    total = torch.zeros(grown.columns.old, dtype=torch.float64)
    for rows in slices(tensor.source_shape, origin.entries[tensor.source].nbytes):
        total += source_rows(tensor, origin, rows.start, rows.stop).double().sum(0)
    return total / grown.rows.old


def _source_rows(tensor: TensorPlan, origin: Weights, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a tensor's source, checked to be finite before and after conversion."""
    rows = source_rows(tensor, origin, start, stop)
    if not bool(rows.isfinite().all()):
        stored = origin.read(tensor.source, start, stop)
        bad = (~rows.isfinite()).nonzero()[0].tolist()
        where = ", ".join(str(i + start if axis == 0 else i) for axis, i in enumerate(bad))
        finite = bool(stored[tuple(bad)].isfinite())
        raise CheckpointError(
            f"a weight does not fit into {tensor.dtype}" if finite else "a weight is not a finite number",
            file=origin.entries[tensor.source].file,
            tensor=f"{tensor.source}[{where}]",
            found=float(stored[tuple(bad)]),
            expected="a finite number",
            cure="choose a --dtype with more range" if finite else "the checkpoint is damaged or training diverged",
        )
    return rows


def _power(tensor: TensorPlan, origin: Weights) -> float:
    """Mean square of the source tensor in fp64: row by row, and exactly over the rows, so that slices do not matter."""
    sums: list[float] = []
    for rows in slices(tensor.source_shape, origin.entries[tensor.source].nbytes):
        block = source_rows(tensor, origin, rows.start, rows.stop)
        sums += block.double().square().view(len(rows), -1).sum(1).tolist()
    return math.fsum(sums) / math.prod(tensor.source_shape)


def loudest_noise(tensor: TensorPlan, made: Plan, origin: Weights) -> float:
    """More than any share's Gaussian noise can be: six deviations of the loudest expansion's noise."""
    return 6 * math.sqrt(_power(tensor, origin) * 10 ** (-made.growth.snr_db / 10))


def check_tie(origin: Weights, head: str, embedding: str) -> None:
    """A head that the config calls tied but that is stored as well must equal the embedding.

    Raises:
        CheckpointError: it differs.
    """
    a, b = origin.entries[head], origin.entries[embedding]
    same = a.shape == b.shape and a.dtype == b.dtype
    if same:
        for rows in slices(a.shape, a.nbytes):
            if not bool(origin.read(head, rows.start, rows.stop).equal(origin.read(embedding, rows.start, rows.stop))):
                same = False
                break
    if not same:
        raise CheckpointError(
            "the config ties the head to the embedding, but both are stored and they differ",
            file="config.json",
            field="tie_word_embeddings",
            tensor=head,
            found="true",
            expected=f"{head} equal to {embedding}",
            cure='set "tie_word_embeddings": false if the head is a tensor of its own; remove it from the file if not',
        )
