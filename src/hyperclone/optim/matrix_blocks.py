"""The matrices of a hidden parameter that Muon orthogonalizes one by one, in the coordinates of copies.

A parameter falls apart into blocks. Along rows and along columns, coordinates belong together that are of the same
matrix (queries, keys and values, gate and up may be stored as one) and stand at the same copy: what copies have in
common stands at the first, their differences at the others (rotation.py); padding channels are by themselves.
A matrix that grew 2x in both directions has four blocks, one that did not grow has one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hyperclone.expansion.copy_map import CopyMap
from hyperclone.planning.scaling_rule import adjustment


@dataclass(frozen=True)
class Side:
    """Coordinates along one dimension that belong together: they lie at start..stop, once sorted.

    Attributes:
        start, stop: where.
        difference: they are differences between copies.
        old: how many there are in the source; all of them, unless they are copies that are not told apart.
    """

    start: int
    stop: int
    difference: bool
    old: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class MatrixBlocks:
    """The blocks of one parameter (..., rows, columns).

    Attributes:
        row_order, column_order: the coordinates in the order of the sides; None where they stand so.
        rows, columns: the sides; each pair of them is a block.
        adjusted: shapes (source's, grown) for which the learning rate is adjusted already: the scaling rule's for whole
            parameters. Their ratio is taken back, since a part of one may have another.
    """

    row_order: Tensor | None
    column_order: Tensor | None
    rows: tuple[Side, ...]
    columns: tuple[Side, ...]
    adjusted: tuple[tuple[int, int], tuple[int, int]] | None = None

    def orthogonalized(
        self, value: Tensor, orthogonalize: Callable[[Tensor], Tensor], *, adjust: str, difference_ratio: float
    ) -> Tensor:
        """A value (..., rows, columns) with each block orthogonalized and multiplied by its adjustment.

        Args:
            value: in the coordinates of copies.
            orthogonalize: matrices (number, rows, columns) of one shape, each on its own.
            adjust: torch.optim.Muon's adjust_lr_fn, by the shape of the block, in the source.
            difference_ratio: a further factor of all blocks of differences.
        """
        value = _sorted(_sorted(value, -2, self.row_order), -1, self.column_order)
        result = torch.empty_like(value)
        old, new = (1.0, 1.0) if self.adjusted is None else (adjustment(shape, adjust) for shape in self.adjusted)
        for blocks in self.by_shape:
            batch = torch.stack([value[..., r.start : r.stop, c.start : c.stop] for r, c in blocks])
            done = orthogonalize(batch.flatten(0, -3)).view(batch.shape)
            for (r, c), block in zip(blocks, done, strict=True):
                factor = adjustment((r.old, c.old), adjust) * new / old
                factor *= difference_ratio if r.difference or c.difference else 1.0
                result[..., r.start : r.stop, c.start : c.stop] = block * factor
        return _unsorted(_unsorted(result, -2, self.row_order), -1, self.column_order)

    @cached_property
    def by_shape(self) -> list[list[tuple[Side, Side]]]:
        """The blocks, those of one shape together."""

        def shape(block: tuple[Side, Side]) -> tuple[int, int]:
            return block[0].size, block[1].size

        blocks = sorted(itertools.product(self.rows, self.columns), key=shape)
        return [list(group) for _, group in itertools.groupby(blocks, key=shape)]

    def to(self, device: torch.device) -> MatrixBlocks:
        """The same for parameters on a device."""
        if all(order is None or order.device == device for order in (self.row_order, self.column_order)):
            return self
        rows, columns = (None if order is None else order.to(device) for order in (self.row_order, self.column_order))
        return replace(self, row_order=rows, column_order=columns)


def blocks_of(maps: Sequence[CopyMap], *, reads: int, together: bool = False) -> MatrixBlocks:
    """The blocks of a parameter.

    Args:
        maps: of its dimensions. The last two are rows and columns; one before them counts experts.
        reads: the dimension that is read, counted from the end (-1 or -2). All its units are inputs of one matrix.
        together: copies are not told apart, and the learning rate is that of the scaling rule for the whole parameter.
    """
    rows, columns = (_sides(maps[dim], several=dim != reads, together=together) for dim in (-2, -1))
    old, new = ((maps[-2].old, maps[-1].old), (maps[-2].new, maps[-1].new))
    return MatrixBlocks(rows[0], columns[0], rows[1], columns[1], adjusted=(old, new) if together else None)


def _sides(copies: CopyMap, *, several: bool, together: bool) -> tuple[Tensor | None, tuple[Side, ...]]:
    """The order of the sides, and the sides.

    Args:
        copies: the map of the dimension.
        several: parts are matrices of their own.
        together: copies and padding are in one side.
    """
    padding = int(copies.number.max()) + 1
    place = torch.where(copies.count == 0, padding, copies.number) * (not together)
    key = copies.part * (padding + 1) + place if several else place
    order = torch.argsort(key, stable=True)
    values, sizes = torch.unique(key, return_counts=True)
    ends = sizes.cumsum(0).tolist()
    sides = tuple(
        Side(
            stop - size,
            stop,
            difference=0 < value % (padding + 1) < padding,
            old=len(torch.unique(copies.source[(key == value) & (copies.count > 0)])) if together else size,
        )
        for value, size, stop in zip(values.tolist(), sizes.tolist(), ends, strict=True)
    )
    return None if torch.equal(order, torch.arange(copies.new)) else order, sides


def _sorted(value: Tensor, dim: int, order: Tensor | None) -> Tensor:
    return value if order is None else value.index_select(dim, order)


def _unsorted(value: Tensor, dim: int, order: Tensor | None) -> Tensor:
    return value if order is None else torch.empty_like(value).index_copy_(dim, order, value)
