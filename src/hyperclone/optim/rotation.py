"""The coordinates of copies: what the copies of a weight have in common, and their differences.

The c copies of a unit are rotated by Helmert's matrix, which is orthogonal: row 0 is constant, 1/sqrt(c), and row b is
the sum of the copies before b minus b times copy b, over sqrt(b (b + 1)). A weight is turned along rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from hyperclone.expansion import copy_map
from hyperclone.expansion.copy_map import CopyMap, as_slice


@dataclass(frozen=True, eq=False)
class Rotation:
    """The change of coordinates of one tensor.

    Attributes:
        maps: of each of its dimensions.
        device: of the tensors that it turns; None for the CPU.

    Differences are computed by sums, never by a matrix product: a GPU may round its factors (TF32), and of nearly
    equal copies only rounding would be left.
    """

    maps: tuple[CopyMap, ...]
    device: torch.device | None = None

    def to(self, device: torch.device) -> Rotation:
        """The same for tensors on a device, so that no step waits for indices to be copied there."""
        return self if device == self.device else replace(self, device=device)

    @cached_property
    def turns(self) -> tuple[tuple[int, tuple[slice | Tensor, ...]], ...]:
        """(dimension, indices of each copy) of all units with copies."""
        return tuple(
            (dim, tuple(self._here(as_slice(units)) for units in indices))
            for dim, axis in enumerate(self.maps)
            for count, _, indices in axis.groups
            if count > 1
        )

    @cached_property
    def paired(self) -> bool:
        """Whether no unit has more than two copies along a dimension: then sums and differences suffice."""
        return all(len(indices) == 2 for _, indices in self.turns)

    @cached_property
    def scale(self) -> float:
        """The factor of all coordinates: 1/sqrt(2) for each dimension that consists of pairs."""
        return math.prod(math.sqrt(0.5) for axis in self.maps if _pairs(axis))

    @cached_property
    def scales(self) -> tuple[Tensor, ...]:
        """The other factors, broadcastable: for each other dimension with copies, one for each unit."""
        return tuple(
            self._along(dim, _lengths(axis).reciprocal()).to(self.device)
            for dim, axis in enumerate(self.maps)
            if _copied(axis) and not _pairs(axis)
        )

    def forward(self, value: Tensor) -> Tensor:
        """Weights or gradients in the new coordinates: coordinate b of a unit stands where its copy b stood.

        Sums come first and factors last: a compiler fuses a factor and a sum into one operation, which would leave a
        rounding error as the difference of equal copies.
        """
        value = value.clone()
        for dim, indices in self.turns:
            copies = value.movedim(dim, 0)
            total = copies[indices[0]]  # consecutive units are a view, others a copy
            for b, units in enumerate(indices[1:], 1):
                copy = copies[units]
                difference = total - (copy if b == 1 else b * copy)  # not fused either
                total += copy
                copies[units] = difference
            _put(copies, indices[0], total)
        return self._scaled(value).mul_(self.scale)

    def inverse(self, value: Tensor) -> Tensor:
        """The inverse of `forward`."""
        return self.inverse_unscaled(value.clone()).mul_(self.scale)

    def inverse_unscaled(self, value: Tensor) -> Tensor:
        """The inverse of `forward`, in place, without the factor `scale`."""
        value = self._scaled(value)
        for dim, indices in self.turns:
            copies = value.movedim(dim, 0)
            mean = copies[indices[0]]  # of the copies that are not restored yet
            for b in range(len(indices) - 1, 0, -1):
                difference = copies[indices[b]]
                copy = torch.sub(mean, difference, alpha=b)
                mean += difference
                copies[indices[b]] = copy
            _put(copies, indices[0], mean)
        return value

    @cached_property
    def factors(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each dimension with copies, broadcastable: (square roots of their numbers, 1 where it is a difference).

        The product of the roots is sqrt(k). A coordinate is a difference if it is one along any dimension; padding
        channels, which copy nothing, are none.
        """
        return tuple(
            (
                self._along(dim, axis.count.clamp(min=1).double().sqrt()),
                self._along(dim, ((axis.number > 0) & (axis.count > 0)).double()),
            )
            for dim, axis in enumerate(self.maps)
            if _copied(axis)
        )

    @cached_property
    def root(self) -> float | None:
        """sqrt(k), if it is the same for the whole tensor, else None."""
        flat = [roots.flatten() for roots, _ in self.factors]
        return (
            math.prod(float(roots[0]) for roots in flat) if all((roots == roots[0]).all() for roots in flat) else None
        )

    @cached_property
    def runs(self) -> tuple[tuple[Tensor, ...], tuple[Runs, ...]] | None:
        """Where the copies lie in the parameter as a matrix, whose columns are its last dimension.

        Of rows (c, J) for each number c of copies: the copies of J units; of columns their runs. Padding counts as
        units of one copy. None where two dimensions that make up the rows have copies: each is turned by itself.
        """
        *before, last = self.maps
        if sum(map(_copied, before)) > 1:
            return None
        rows = reduce(lambda one, other: copy_map.product([one, other]), before) if before else copy_map.axis(1, 1)
        return _positions(rows), tuple(map(Runs.of, _positions(last)))

    def _scaled(self, value: Tensor) -> Tensor:
        for scale in self.scales:
            value.mul_(scale.to(torch.promote_types(value.dtype, torch.float32)))
        return value

    def _here(self, units: slice | Tensor) -> slice | Tensor:
        return units if isinstance(units, slice) else units.to(self.device)

    def _along(self, dim: int, vector: Tensor) -> Tensor:
        return vector.view(*[1] * dim, -1, *[1] * (len(self.maps) - 1 - dim))


@dataclass(frozen=True, eq=False)
class Runs:
    """Units of columns with c copies each, in K runs.

    Attributes:
        starts: (c, K) where the copies of the first unit of each run stand.
        sizes: (K,) units of each run. The next unit stands behind: each of its copies, or (side by side) all of them.
        side_by_side: the copies of a unit are neighbors, in their order.
    """

    starts: Tensor
    sizes: Tensor
    side_by_side: bool

    @classmethod
    def of(cls, positions: Tensor) -> Runs:
        """As few runs as there can be.

        Args:
            positions: (c, J) of the copies of J units.
        """
        count, units = positions.shape
        neighbors = count > 1 and bool((positions - positions[0] == torch.arange(count)[:, None]).all())
        begin_apart, begin_beside = (
            torch.cat([torch.tensor([True]), (positions.diff(dim=1) != distance).any(0)]) for distance in (1, count)
        )
        side_by_side = neighbors and int(begin_beside.sum()) < int(begin_apart.sum())
        begins = (begin_beside if side_by_side else begin_apart).nonzero().flatten()
        sizes = torch.cat([begins, torch.tensor([units])]).diff()
        return cls(positions[:, begins].contiguous(), sizes, side_by_side)


def _copied(copies: CopyMap) -> bool:
    """Whether a dimension has units with copies."""
    return bool((copies.count > 1).any())


def _pairs(copies: CopyMap) -> bool:
    """Whether a dimension consists of pairs."""
    return bool((copies.count == 2).all())


def _lengths(copies: CopyMap) -> Tensor:
    """(D,) norms of the unnormalized rows of Helmert's matrix that the units' coordinates are."""
    rows = torch.where(copies.number == 0, copies.count, copies.number * (copies.number + 1))
    return torch.where(copies.count > 1, rows, 1).double().sqrt()


def _positions(axis: CopyMap) -> tuple[Tensor, ...]:
    alone = [axis.padding, *(positions[0] for count, _, positions in axis.groups if count == 1)]
    single = torch.cat(alone).sort().values[None]
    copied = tuple(positions for count, _, positions in axis.groups if count > 1)
    return (single, *copied) if single.numel() else copied


def _put(copies: Tensor, units: slice | Tensor, value: Tensor) -> None:
    """Write back, unless it is a view."""
    if isinstance(units, Tensor):
        copies[units] = value
