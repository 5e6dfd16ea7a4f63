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

from hyperclone.copies import Copies, as_slice


@dataclass(frozen=True, eq=False)
class Rotation:
    """The change of coordinates of one tensor.

    Attributes:
        maps: of each of its dimensions.
        device: of the tensors that it turns; None for the CPU.

    Copies are compared by sums, never by a matrix product: a GPU may round its factors (TF32), and what is left
    of nearly equal copies would be rounding.
    """

    maps: tuple[Copies, ...]
    device: torch.device | None = None

    def to(self, device: torch.device) -> Rotation:
        """The same for tensors of a device, so that no step waits for indices to get there."""
        return self if device == self.device else replace(self, device=device)

    @cached_property
    def turns(self) -> tuple[tuple[int, tuple[slice | Tensor, ...], bool], ...]:
        """(dimension, places of each copy, whether the dimension holds nothing but pairs) of all units with copies."""
        return tuple(
            (dim, tuple(self._here(as_slice(place)) for place in places), bool((found.count == 2).all()))
            for dim, found in enumerate(self.maps)
            for count, _, places in found.groups
            if count > 1
        )

    @cached_property
    def paired(self) -> bool:
        """No unit has more than two copies along a dimension: then sums and differences are all there is."""
        return all(len(places) == 2 for _, places, _ in self.turns)

    @cached_property
    def scale(self) -> float:
        """What all coordinates have in common: a factor 1/sqrt(2) for each dimension that holds nothing but pairs."""
        return math.prod(math.sqrt(0.5) for _, _, pairs in self.turns if pairs)

    def forward(self, value: Tensor) -> Tensor:
        """Weights or gradients in the new coordinates: coordinate b of a unit stands where its copy b stood."""
        return self.forward_unscaled(value.clone()).mul_(self.scale)

    def forward_unscaled(self, value: Tensor) -> Tensor:
        """The same in place, but for the factor `scale`. That comes last: a compiler makes one operation of a factor
        and a sum, in which equal copies leave what rounding leaves.
        """
        for dim, places, pairs in self.turns:
            copies = value.movedim(dim, 0)
            total = copies[places[0]]  # a run of units is a view, others are copied
            for b, place in enumerate(places[1:], 1):
                own = copies[place]
                apart = total - (own if b == 1 else b * own)  # not in one operation, see above
                total += own
                copies[place] = apart if pairs else apart.div_(math.sqrt(b * (b + 1)))
            _put(copies, places[0], total if pairs else total.div_(math.sqrt(len(places))))
        return value

    def inverse(self, value: Tensor) -> Tensor:
        """Back."""
        return self.inverse_unscaled(value.clone()).mul_(self.scale)

    def inverse_unscaled(self, value: Tensor) -> Tensor:
        """Back, in place and but for the factor `scale`."""
        for dim, places, pairs in self.turns:
            copies = value.movedim(dim, 0)
            mean = copies[places[0]]  # of the copies that are still to be found
            if not pairs:
                mean.div_(math.sqrt(len(places)))
            for b in range(len(places) - 1, 0, -1):
                apart = copies[places[b]]
                if not pairs:
                    apart.div_(math.sqrt(b * (b + 1)))
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
            if any(dim == turned for turned, _, _ in self.turns)
        )

    @cached_property
    def root(self) -> float | None:
        """sqrt(k), where it is the same for the whole tensor."""
        told = [roots.flatten() for roots, _ in self.factors]
        return math.prod(float(one[0]) for one in told) if all((one == one[0]).all() for one in told) else None

    def _here(self, place: slice | Tensor) -> slice | Tensor:
        return place if isinstance(place, slice) else place.to(self.device)

    def _along(self, dim: int, vector: Tensor) -> Tensor:
        return vector.view(*[1] * dim, -1, *[1] * (len(self.maps) - 1 - dim))


def _put(copies: Tensor, place: slice | Tensor, value: Tensor) -> None:
    """Write back what may be a view already."""
    if isinstance(place, Tensor):
        copies[place] = value
