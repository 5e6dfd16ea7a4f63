"""Which old unit each new unit copies, for one stored dimension of a tensor.

Grow an axis from d to D units. *Tiled*, new unit i copies old unit i mod d, so a hidden state becomes n stacked copies
`[x; x; ...]` (arXiv 2409.12903, section 2). *Interleaved*, the copies of a unit stand side by side: new unit i copies
floor(i d / D), or floor(i / k) of k copies each and padding behind them. Any order is as exact as another, since the
model treats the units of an axis alike; the channels of a head are always tiled (head_scaling.AXIS).

A stored dimension flattens several axes, so its map is the C-order product of theirs; concatenated parts are maps laid
end to end, also as one factor of a product. The arithmetic needs three integers for each new unit; a fourth says which
part it belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hyperclone.architectures.layout import Dim, Factor, Query
from hyperclone.planning import head_scaling
from hyperclone.planning.recipe import OrderName


@dataclass(frozen=True, eq=False)
class CopyMap:
    """The map of one stored dimension from D new units to d old ones.

    Attributes:
        source: (D,) the old unit that each new unit copies.
        number: (D,) which copy of that old unit it is, from 0.
        count: (D,) how many copies that old unit has in all; 0 for padding, which copies nothing.
        part: (D,) which matrix it belongs to where several are stored as one: queries, keys and values, gate and up.
            Concatenated parts are told apart, and units of an axis that the layout gives as a number.
        old: d.
    """

    source: Tensor
    number: Tensor
    count: Tensor
    part: Tensor
    old: int

    @property
    def new(self) -> int:
        """D."""
        return self.source.numel()

    @property
    def grown(self) -> bool:
        """True when some old unit has more than one copy."""
        return self.new != self.old

    @cached_property
    def padding(self) -> Tensor:
        """(P,) padding: new units that copy nothing."""
        return (self.count == 0).nonzero().flatten()

    @cached_property
    def groups(self) -> tuple[tuple[int, Tensor, Tensor], ...]:
        """Old units by number of copies: (c, units (J,), positions (c, J)); row b: copy b of each unit."""
        groups = []
        for c in sorted(set(self.count.tolist()) - {0}):
            first = ((self.number == 0) & (self.count == c)).nonzero().flatten()
            units = self.source[first]
            slot = torch.full((self.old,), -1, dtype=torch.long)
            slot[units] = torch.arange(units.numel())
            positions = torch.empty(c, units.numel(), dtype=torch.long)
            copied = (self.count == c).nonzero().flatten()
            positions[self.number[copied], slot[self.source[copied]]] = copied
            groups.append((c, units, positions))
        return tuple(groups)

    @cached_property
    def spans(self) -> tuple[tuple[int, slice | Tensor, tuple[slice | Tensor, ...]], ...]:
        """`groups`, with runs of consecutive units as slices, which read and write without a gather."""
        return tuple((c, as_slice(units), tuple(map(as_slice, positions))) for c, units, positions in self.groups)


def as_slice(index: Tensor) -> slice | Tensor:
    """Indices at equal distances as a slice; anything else as it is."""
    step = int(index[1] - index[0]) if index.numel() > 1 else 1
    if index.numel() and step > 0 and bool((index == index[0] + step * torch.arange(index.numel())).all()):
        return slice(int(index[0]), int(index[-1]) + 1, None if step == 1 else step)
    return index


def axis(old: int, new: int, *, padded: bool = False, order: OrderName = "tiled") -> CopyMap:
    """One axis.

    Args:
        old, new: d and D.
        padded: every old unit has the same number of copies, and the units left over, at the end, are padding.
        order: of the copies.
    """
    assert new >= old > 0, (old, new)
    unit, copied = torch.arange(new), new // old * old if padded else new
    if order == "tiled":
        source, number = unit % old, unit // old
        count = (copied - source + old - 1) // old
    else:
        source = unit * old // copied % old  # of padding, any
        first = (source * copied + old - 1) // old
        number, count = unit - first, (source * copied + copied + old - 1) // old - first
    if padded:
        count = torch.where(unit < copied, count, 0)
    return CopyMap(source, number, count, torch.zeros_like(unit), old)


def without_copies(copies: CopyMap) -> CopyMap:
    """The map in which every unit is taken for one of its own, but belongs to the same part."""
    return replace(axis(copies.new, copies.new), part=copies.part)


def product(parts: Sequence[CopyMap]) -> CopyMap:
    """Axes flattened into one dimension in C order."""
    whole = parts[0]
    for part in parts[1:]:
        # The copies of the pair (j, k) are the pairs of their copies, so counts multiply and numbers nest.
        source = whole.source[:, None] * part.old + part.source
        count = whole.count[:, None] * part.count
        number = whole.number[:, None] * part.count + part.number
        inner = whole.part[:, None] * _parts(part) + part.part
        whole = CopyMap(source.flatten(), number.flatten(), count.flatten(), inner.flatten(), whole.old * part.old)
    return whole


def concatenate(parts: Sequence[CopyMap]) -> CopyMap:
    """Parts laid end to end in one dimension."""
    sources, numbers, old, before = [], [], 0, 0
    for part in parts:
        sources.append(part.source + old)
        numbers.append(part.part + before)
        old, before = old + part.old, before + _parts(part)
    return CopyMap(
        torch.cat(sources),
        torch.cat([p.number for p in parts]),
        torch.cat([p.count for p in parts]),
        torch.cat(numbers),
        old,
    )


def _parts(copies: CopyMap) -> int:
    """How many matrices the units belong to."""
    return int(copies.part.max()) + 1


def of_dim(
    dim: Dim, sizes: Mapping[str, tuple[int, int]], padded: Collection[str] = (), *, order: OrderName = "tiled"
) -> CopyMap:
    """The map of one stored dimension.

    Args:
        dim: the dimension.
        sizes: (old, new) of every axis.
        padded: axes with padding.
        order: of the copies.
    """

    def of(factor: Factor) -> CopyMap:
        if isinstance(factor, Query):
            return of_dim(factor.dim, sizes, padded, order=order)
        if isinstance(factor, tuple):
            return of_dim(factor, sizes, padded, order=order)
        if isinstance(factor, int):
            return replace(axis(factor, factor), part=torch.arange(factor))
        return axis(*sizes[factor], padded=factor in padded, order="tiled" if factor == head_scaling.AXIS else order)

    return concatenate([product([of(factor) for factor in block]) for block in dim])
