"""One output tensor at a time: read its source, expand it, and hand it on in slices.

Memory is a few slices, whatever the tensor's size. The noise depends on positions only, so the bytes depend on
neither the slices nor the order of work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hyperclone.checkpoint import DTYPES
from hyperclone.errors import CheckpointError
from hyperclone.expand import Expansion, Noise, Recipe, TensorMap, expand, expand_rows
from hyperclone.growth import Growth
from hyperclone.planning import TensorPlan
from hyperclone.streaming import Weights, slices


def grown_slices(tensor: TensorPlan, grown_map: TensorMap, recipe: Recipe, origin: Weights) -> Iterator[Tensor]:
    """The grown tensor in stored order, in pieces of about SLICE_BYTES."""
    power = _power(tensor, origin) if recipe.noise is Noise.GAUSSIAN and not grown_map.exact_repeat else None
    if len(tensor.shape) == 1 or grown_map.transposed:
        yield expand(_source_rows(tensor, origin), grown_map, recipe, name=tensor.name, power=power)
        return
    for rows in slices(tensor.shape, tensor.nbytes):
        wanted = grown_map.rows.source[rows.start : rows.stop]
        first, last = int(wanted.min()), int(wanted.max())
        block = _source_rows(tensor, origin, first, last + 1)
        # Rows of one run of copies stand in the file as they are needed; anything else is gathered.
        block = block if _consecutive(wanted) else block[wanted - first]
        yield expand_rows(block, grown_map, recipe, name=tensor.name, rows=rows, power=power)


def source_rows(tensor: TensorPlan, origin: Weights, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a tensor's source in the output's type."""
    rows = origin.read(tensor.source, start, stop)
    wanted: torch.dtype = getattr(torch, DTYPES[tensor.dtype][0])
    return rows if rows.dtype == wanted else rows.to(wanted)


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


def _consecutive(index: Tensor) -> bool:
    return bool((index.diff() == 1).all())


def _power(tensor: TensorPlan, origin: Weights) -> float:
    """Mean square of the source tensor in fp64: row by row, and exactly over the rows, so that slices do not matter."""
    sums: list[float] = []
    for rows in slices(tensor.source_shape, origin.entries[tensor.source].nbytes):
        block = source_rows(tensor, origin, rows.start, rows.stop)
        sums += block.double().square().view(len(rows), -1).sum(1).tolist()
    return math.fsum(sums) / math.prod(tensor.source_shape)


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


def recipe_of(growth: Growth) -> Recipe:
    """The part of a request that the arithmetic needs."""
    return Recipe(
        expansion=Expansion(growth.expansion), noise=Noise(growth.noise), snr_db=growth.snr_db, seed=growth.seed
    )
