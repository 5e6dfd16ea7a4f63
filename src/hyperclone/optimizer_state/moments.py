"""Growing the moments of an optimizer along the axes of its parameters.

A copy's gradient is r times its source's (law.py), so its first moment (or momentum) is r m and its second r^2 v.
Moments are repeated, never shared: rows and columns are copied alike, and only r knows which of them split a weight.
Entry by entry, a weight in a row with a copies and a column with b copies is one of k = a b and is s = f / b times its
source where the columns share it, f where they repeat it (f: the growth's factor for that row). So

    r = 1 / (k s) = 1 / (a f)  where columns are shared,     1 / (a b f)  where they repeat,

which is exact also for uneven counts and for fused tensors whose rows have different counts. Units that copy nothing
have never been trained: their moments are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperclone.expansion import grown_tensors
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.io.streaming import slices
from hyperclone.io.tensor_files import DTYPES, TensorFiles
from hyperclone.optimizer_state.reader import MOMENTS, SourceState
from hyperclone.planning.plan import Plan, TensorPlan

TREATMENTS = ("copy", "first-copy", "reset")  # of the source's moments
_STORED = {f"torch.{name}": stored for stored, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class MomentPlan:
    """One moment to be written: of which tensor, which kind, in which type."""

    tensor: TensorPlan
    kind: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Its name on disk."""
        return f"{self.tensor.name}.{self.kind}"

    @property
    def stored(self) -> str:
        """Its type as safetensors calls it."""
        return _STORED[str(self.dtype)]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return torch.Size(self.tensor.shape).numel() * self.dtype.itemsize


def grown_slices(moment: MomentPlan, made: Plan, source: SourceState, treatment: str) -> Iterator[Tensor]:
    """The grown moment in stored order, in pieces of about SLICE_BYTES.

    Args:
        treatment: "copy", or "first-copy": what is not the first copy in its row and its column gets zero.
    """
    tensor = moment.tensor
    grown = grown_tensors.map_of(tensor, made)
    matrix = grown.as_matrix(source.moment(tensor.source, moment.kind))
    of_row, of_column = _gradients(
        tensor, grown.rows, grown.columns, splits=grown.splits, first_only=treatment != "copy"
    )
    whole = len(tensor.shape) == 1 or grown.transposed
    for rows in [range(grown.rows.new)] if whole else slices(tensor.shape, moment.nbytes):
        chosen = slice(rows.start, rows.stop)
        block = matrix[grown.rows.source[chosen]].double()[:, grown.columns.source]
        r = of_row[chosen, None] * of_column
        block.mul_(r.pow_(MOMENTS[moment.kind]))
        yield grown.as_stored(block.to(moment.dtype), len(tensor.shape))


def compare(output: TensorFiles, moment: MomentPlan, made: Plan, source: SourceState, treatment: str) -> str:
    """What is wrong with a grown moment on disk; "" if it collapses to the source's.

    First copies times k s (squared) must be the source's up to rounding; other copies must equal them (or be zero,
    where only first copies keep them), and what copies nothing must be zero. Streams: a few slices are in memory.
    """
    tensor, entry = moment.tensor, output.entries[moment.name]
    if (entry.shape, entry.dtype) != (tensor.shape, moment.stored):
        return f"found {entry.dtype} {list(entry.shape)}, expected {moment.stored} {list(tensor.shape)}"
    grown = grown_tensors.map_of(tensor, made)
    rows, columns = grown.rows, grown.columns
    first_row, first_column = _first(rows), _first(columns)
    before = grown.as_matrix(source.moment(tensor.source, moment.kind))
    times = torch.tensor(tensor.factor, dtype=torch.float64) * (1 if grown.splits else columns.count[first_column])
    queries = grown_tensors.query_rows(tensor)
    if queries is not None and len(tensor.shape) == 1:
        times = times * queries
    eps, smallest = torch.finfo(moment.dtype).eps, torch.finfo(moment.dtype).tiny
    whole = len(tensor.shape) == 1 or grown.transposed
    for chosen in [range(rows.new)] if whole else slices(tensor.shape, moment.nbytes):
        here = slice(chosen.start, chosen.stop)
        units, number, count = rows.source[here], rows.number[here], rows.count[here]
        block = grown.as_matrix(output.read(moment.name, *(() if whole else (chosen.start, chosen.stop))))
        if bool((originals := (number == 0) & (count > 0)).any()):
            k_s = times * count[originals, None]
            if queries is not None and len(tensor.shape) > 1:
                k_s = k_s * queries[units[originals], None]
            k_s = k_s ** MOMENTS[moment.kind]
            expected = before[units[originals]].double()
            gap = (block[originals][:, first_column].double() * k_s - expected).abs()
            if not bool((gap <= 2 * eps * expected.abs() + smallest * k_s).all()):
                return "does not collapse to the source's moment"
        wanted = first_row[units]
        low, high = int(wanted.min()), int(wanted.max()) + 1
        copied_from = block if whole else grown.as_matrix(output.read(moment.name, low, high))
        copies = copied_from[wanted - (0 if whole else low)][:, first_column[columns.source]]
        keeps = (count > 0)[:, None] & (columns.count > 0)
        if treatment == "first-copy":
            keeps = keeps & (number == 0)[:, None] & (columns.number == 0)
        if not block.equal(copies.masked_fill_(~keeps, 0)):
            return "copies differ"
    return ""


def _first(copies: CopyMap) -> Tensor:
    """(d,) the first copy of each old unit."""
    first = torch.empty(copies.old, dtype=torch.long)
    here = ((copies.number == 0) & (copies.count > 0)).nonzero().flatten()
    first[copies.source[here]] = here
    return first


def _gradients(
    tensor: TensorPlan, rows: CopyMap, columns: CopyMap, *, splits: bool, first_only: bool
) -> tuple[Tensor, Tensor]:
    """r as the product of one number for each row (R,) and one for each column (C,), fp64."""
    of_row, of_column = _share(rows), _share(columns)
    if splits:
        of_column = (of_column > 0).double()
    of_row /= tensor.factor
    if (queries := grown_tensors.query_rows(tensor)) is not None:
        if len(tensor.shape) == 1:  # a vector is one row of many columns
            of_column /= queries[columns.source]
        else:
            of_row /= queries[rows.source]
    if first_only:
        of_row[rows.number > 0] = 0
        of_column[columns.number > 0] = 0
    return of_row, of_column


def _share(copies: CopyMap) -> Tensor:
    """One over the number of copies of each unit; 0 where it copies nothing."""
    return torch.where(copies.count > 0, 1 / copies.count.double(), 0.0)
