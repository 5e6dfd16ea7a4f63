"""Growing the moments of an optimizer along the axes of its parameters.

The gradient of a copy is r times the gradient of its source (scaling_rule.py), so its first moment (or momentum) is r m
and its second r^2 v. A weight may be split over its copies, moments are not: every copy has the source's moment times a
power of r. Take a weight in a row with a copies and a column with b copies. It is one of k = a b copies, and its value
is s times the source's: s = f / b where the columns split a weight, s = f where they repeat it (f: the growth's factor
for that row). So

    r = 1 / (k s) = 1 / (a f)  where columns split,     1 / (a b f)  where they repeat,

which also holds for uneven counts, and for fused tensors whose rows have different counts. Padding channels have never
been trained: their moments are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hyperclone.expansion import grown_tensors
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.expansion.expand import TensorMap
from hyperclone.io.tensor_files import DTYPES, TensorFiles
from hyperclone.optimizer_state.reader import MOMENTS, SourceState
from hyperclone.planning.plan import Plan, TensorPlan

Treatment = Literal["copy", "first-copy", "reset"]  # what copies get of the source's moments
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)
_STORED = {f"torch.{name}": stored for stored, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class MomentPlan:
    """One moment to write.

    Attributes:
        tensor: the plan of its tensor.
        kind: one of reader.MOMENTS.
        dtype: as the source has it.
    """

    tensor: TensorPlan
    kind: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Its name on disk."""
        return f"{self.tensor.name}.{self.kind}"

    @property
    def stored_dtype(self) -> str:
        """The name of its type in safetensors."""
        return _STORED[str(self.dtype)]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return torch.Size(self.tensor.shape).numel() * self.dtype.itemsize


def grown_slices(moment: MomentPlan, plan: Plan, source: SourceState, treatment: str) -> Iterator[Tensor]:
    """The grown moment in stored order, in pieces of about SLICE_BYTES.

    Args:
        moment: to grow.
        plan: of the model.
        source: where the source's moments are.
        treatment: "copy", or "first-copy": all copies but the first, in rows and in columns, get zero.
    """
    tensor = moment.tensor
    grown = grown_tensors.map_of(tensor, plan)
    matrix = grown.as_matrix(source.moment(tensor.source, moment.kind))
    of_row, of_column = _gradients(
        tensor, grown.rows, grown.columns, splits=grown.splits, first_only=treatment != "copy"
    )
    for _, rows in grown_tensors.pieces(grown, tensor.shape, moment.nbytes):
        chosen = slice(rows.start, rows.stop)
        block = matrix[grown.rows.source[chosen]].double()[:, grown.columns.source]
        r = of_row[chosen, None] * of_column
        block.mul_(r.pow_(MOMENTS[moment.kind]))
        yield grown.as_stored(block.to(moment.dtype))


def compare(output: TensorFiles, moment: MomentPlan, plan: Plan, source: SourceState, treatment: str) -> str:
    """Compare a grown moment on disk with the source's; the difference in words, or "" if it collapses to it.

    The first copies times k s (squared for second moments) must equal the source's moment up to rounding. The other
    copies must equal the first ones, or be zero for "first-copy"; padding channels must be zero. Only a few slices are
    in memory.
    """
    tensor, entry = moment.tensor, output.entries[moment.name]
    if (entry.shape, entry.dtype) != (tensor.shape, moment.stored_dtype):
        return f"found {entry.dtype} {list(entry.shape)}, expected {moment.stored_dtype} {list(tensor.shape)}"
    grown = grown_tensors.map_of(tensor, plan)
    rows, columns = grown.rows, grown.columns
    first_row, first_column = _first(rows), _first(columns)
    expected = grown.as_matrix(source.moment(tensor.source, moment.kind))
    for stored, chosen in grown_tensors.pieces(grown, tensor.shape, moment.nbytes):
        here = slice(chosen.start, chosen.stop)
        units, number, count = rows.source[here], rows.number[here], rows.count[here]
        block = grown.as_matrix(output.read(moment.name, stored.start, stored.stop))
        first = (number == 0) & (count > 0)
        if bool(first.any()):
            factors = _collapse_factors(tensor, grown, units[first], count[first]) ** MOMENTS[moment.kind]
            if not _collapses(block[first][:, first_column], expected[units[first]], factors):
                return "does not collapse to the source's moment"
        copied_rows = first_row[units]
        copied, low = block, chosen.start
        if not grown.whole:
            _, each = grown.rows_per_stored
            start, stop = int(copied_rows.min()) // each, int(copied_rows.max()) // each + 1
            copied, low = grown.as_matrix(output.read(moment.name, start, stop)), start * each
        copies = copied[copied_rows - low][:, first_column[columns.source]]
        nonzero = (count > 0)[:, None] & (columns.count > 0)
        if treatment == "first-copy":
            nonzero = nonzero & (number == 0)[:, None] & (columns.number == 0)
        if not block.equal(copies.masked_fill_(~nonzero, 0)):
            return "copies differ"
    return ""


def _collapse_factors(tensor: TensorPlan, grown: TensorMap, units: Tensor, counts: Tensor) -> Tensor:
    """k s of the first copies, (rows, columns of the source) in fp64, for rows of these source units and counts."""
    columns, queries = grown.columns, grown_tensors.query_rows(tensor)
    factors = torch.tensor(tensor.factor, dtype=torch.float64) * (1 if grown.splits else columns.count[_first(columns)])
    if queries is not None and grown.one_row:  # a vector is one row of many columns
        factors = factors * queries
    factors = factors * counts[:, None]
    return factors if queries is None or grown.one_row else factors * queries[units, None]


def _collapses(first_copies: Tensor, expected: Tensor, factors: Tensor) -> bool:
    """Whether first copies times factors are the expected values, up to rounding in the type of the copies."""
    precision = torch.finfo(first_copies.dtype)
    gap = (first_copies.double() * factors - expected.double()).abs()
    return bool((gap <= 2 * precision.eps * expected.double().abs() + precision.tiny * factors).all())


def _first(copies: CopyMap) -> Tensor:
    """(d,) the index of the first copy of each source unit."""
    indices = torch.empty(copies.old, dtype=torch.long)
    here = ((copies.number == 0) & (copies.count > 0)).nonzero().flatten()
    indices[copies.source[here]] = here
    return indices


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
    """One over the number of copies of each unit; 0 for padding channels."""
    return torch.where(copies.count > 0, 1 / copies.count.double(), 0.0)
