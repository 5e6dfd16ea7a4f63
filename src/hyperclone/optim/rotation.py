"""The coordinates of copies: what the copies of a weight have in common, and what tells them apart.

The c copies of a unit are rotated by Helmert's matrix, which is orthogonal: row 0 is constant, 1/sqrt(c), and row b is
the sum of the copies before b less b times copy b, over sqrt(b (b + 1)). A weight is turned along rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hyperclone.expansion.copy_map import CopyMap, as_slice


@dataclass(frozen=True, eq=False)
class Rotation:
    """The change of coordinates of one tensor.

    Attributes:
        maps: of each of its dimensions.
        device: of the tensors that it turns; None for the CPU.

    Copies are compared by sums, never by a matrix product: a GPU may round its factors (TF32), and what is left
    of nearly equal copies would be rounding.
    """

    maps: tuple[CopyMap, ...]
    device: torch.device | None = None

    def to(self, device: torch.device) -> Rotation:
        """The same for tensors of a device, so that no step waits for indices to get there."""
        return self if device == self.device else replace(self, device=device)

    @cached_property
    def turns(self) -> tuple[tuple[int, tuple[slice | Tensor, ...]], ...]:
        """(dimension, places of each copy) of all units with copies."""
        return tuple(
            (dim, tuple(self._here(as_slice(place)) for place in places))
            for dim, found in enumerate(self.maps)
            for count, _, places in found.groups
            if count > 1
        )

    @cached_property
    def paired(self) -> bool:
        """No unit has more than two copies along a dimension: then sums and differences are all there is."""
        return all(len(places) == 2 for _, places in self.turns)

    @cached_property
    def scale(self) -> float:
        """What all coordinates have in common: a factor 1/sqrt(2) for each dimension that holds nothing but pairs."""
        return math.prod(math.sqrt(0.5) for found in self.maps if _pairs(found))

    @cached_property
    def scales(self) -> tuple[Tensor, ...]:
        """What they have not: of each other dimension with copies, a factor for each unit, shaped to broadcast."""
        return tuple(
            self._along(dim, _lengths(found).reciprocal()).to(self.device)
            for dim, found in enumerate(self.maps)
            if _copied(found) and not _pairs(found)
        )

    def forward(self, value: Tensor) -> Tensor:
        """Weights or gradients in the new coordinates: coordinate b of a unit stands where its copy b stood.

        Sums come first and factors last: a compiler makes one operation of a factor and a sum, in which copies that are
        equal leave what rounding leaves.
        """
        value = value.clone()
        for dim, places in self.turns:
            copies = value.movedim(dim, 0)
            total = copies[places[0]]  # a run of units is a view, others are copied
            for b, place in enumerate(places[1:], 1):
                own = copies[place]
                apart = total - (own if b == 1 else b * own)  # not in one operation either
                total += own
                copies[place] = apart
            _put(copies, places[0], total)
        return self._scaled(value).mul_(self.scale)

    def inverse(self, value: Tensor) -> Tensor:
        """Back."""
        return self.inverse_unscaled(value.clone()).mul_(self.scale)

    def inverse_unscaled(self, value: Tensor) -> Tensor:
        """Back, in place and but for the factor `scale`."""
        value = self._scaled(value)
        for dim, places in self.turns:
            copies = value.movedim(dim, 0)
            mean = copies[places[0]]  # of the copies that are still to be found
            for b in range(len(places) - 1, 0, -1):
                apart = copies[places[b]]
                own = torch.sub(mean, apart, alpha=b)
                mean += apart
                copies[places[b]] = own
            _put(copies, places[0], mean)
        return value

    @cached_property
    def factors(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each dimension with copies, shaped to broadcast: (square roots of their numbers, 1 where copies differ).

        The product of the roots is sqrt(k). A coordinate is a difference if it is one along any dimension; what copies
        nothing is none.
        """
        return tuple(
            (
                self._along(dim, found.count.clamp(min=1).double().sqrt()),
                self._along(dim, ((found.number > 0) & (found.count > 0)).double()),
            )
            for dim, found in enumerate(self.maps)
            if _copied(found)
        )

    @cached_property
    def root(self) -> float | None:
        """sqrt(k), where it is the same for the whole tensor."""
        told = [roots.flatten() for roots, _ in self.factors]
        return math.prod(float(one[0]) for one in told) if all((one == one[0]).all() for one in told) else None

    def _scaled(self, value: Tensor) -> Tensor:
        for one in self.scales:
            value.mul_(one.to(torch.promote_types(value.dtype, torch.float32)))
        return value

    def _here(self, place: slice | Tensor) -> slice | Tensor:
        return place if isinstance(place, slice) else place.to(self.device)

    def _along(self, dim: int, vector: Tensor) -> Tensor:
        return vector.view(*[1] * dim, -1, *[1] * (len(self.maps) - 1 - dim))


def _copied(found: CopyMap) -> bool:
    """A dimension has units with copies."""
    return bool((found.count > 1).any())


def _pairs(found: CopyMap) -> bool:
    """A dimension holds nothing but pairs."""
    return bool((found.count == 2).all())


def _lengths(found: CopyMap) -> Tensor:
    """(D,) of the row of Helmert's matrix, before it is scaled, that each unit's coordinate is."""
    rows = torch.where(found.number == 0, found.count, found.number * (found.number + 1))
    return torch.where(found.count > 1, rows, 1).double().sqrt()


def _put(copies: Tensor, place: slice | Tensor, value: Tensor) -> None:
    """Write back what may be a view already."""
    if isinstance(place, Tensor):
        copies[place] = value
