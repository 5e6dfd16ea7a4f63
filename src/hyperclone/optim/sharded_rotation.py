"""The coordinates of copies for one shard of a parameter: without communication where a shard holds whole groups.

A parameter is sharded along one dimension, in consecutive units. Where all copies of a unit lie in one shard (copies
side by side, and boundaries that fall on groups), the shard is rotated like a tensor of its own. Elsewhere processes
send each other the copies that the other's units have: never more than these, and only to who needs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from hyperclone.expansion.copy_map import CopyMap
from hyperclone.optim.rotation import Rotation


class Turn(Protocol):
    """A change of coordinates of what this process holds of a parameter; `Rotation` where that is everything needed."""

    @property
    def paired(self) -> bool:
        """Sums and differences suffice, and nothing is sent."""

    @property
    def scale(self) -> float:
        """As of Rotation."""

    @property
    def root(self) -> float | None:
        """As of Rotation."""

    @property
    def factors(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """As of Rotation, of the units that this process holds."""

    def forward(self, value: Tensor) -> Tensor:
        """As of Rotation."""

    def inverse_unscaled(self, value: Tensor) -> Tensor:
        """As of Rotation; the value may be changed."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """What one process sends and receives so that it has all copies of its units.

    Attributes:
        group: the processes.
        send: (N,) positions in its shard, for one process after the other.
        sent, received: numbers of units for, and from, each process.
    """

    group: ProcessGroup
    send: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]

    def __call__(self, units: Tensor) -> Tensor:
        """The copies (sum of `received`, ...) of units (n, ...) that other processes hold."""
        outgoing = units.index_select(0, self.send).contiguous()
        incoming = units.new_empty(sum(self.received), *units.shape[1:])
        dist.all_to_all_single(incoming, outgoing, list(self.received), list(self.sent), group=self.group)
        return incoming


@dataclass(frozen=True, eq=False)
class _SentRotation(ABC):
    """The coordinates of what this process holds, for which it must get something from others.

    Attributes:
        rotation: of that and of what it gets.
    """

    rotation: Rotation
    paired = False

    @property
    def scale(self) -> float:
        """As of Rotation."""
        return self.rotation.scale

    @property
    def root(self) -> float | None:
        """As of Rotation."""
        return self.rotation.root

    def forward(self, value: Tensor) -> Tensor:
        """As of Rotation, of what this process holds."""
        return self._turned(self.rotation.forward, value)

    def inverse_unscaled(self, value: Tensor) -> Tensor:
        """As of Rotation, of what this process holds."""
        return self._turned(self.rotation.inverse_unscaled, value)

    @abstractmethod
    def _turned(self, turn: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """Get what is needed, turn it, and keep this process's part."""


@dataclass(frozen=True, eq=False)
class ShardedRotation(_SentRotation):
    """The coordinates of a shard whose units have copies in others.

    Attributes:
        rotation: of the shard's units, with those copies behind them.
        dim: that is sharded.
        units: of the shard.
        exchange: fetches the copies.
    """

    dim: int
    units: int
    exchange: Exchange

    @cached_property
    def factors(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """As of Rotation, of the shard."""

        def here(vector: Tensor) -> Tensor:
            return vector if vector.shape[self.dim] == 1 else vector.narrow(self.dim, 0, self.units)

        return tuple((here(roots), here(difference)) for roots, difference in self.rotation.factors)

    def _turned(self, turn: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        elsewhere = self.exchange(value.movedim(self.dim, 0)).movedim(0, self.dim)
        return turn(torch.cat([value, elsewhere], self.dim)).narrow(self.dim, 0, self.units)


@dataclass(frozen=True, eq=False)
class GatheredRotation(_SentRotation):
    """The coordinates of a parameter that is sharded in another way: every process gathers all of it.

    Attributes:
        rotation: of the whole parameter.
        like: the parameter.
    """

    like: DTensor

    @cached_property
    def factors(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """As of Rotation, of what this process holds."""
        return tuple((self._here(roots), self._here(difference)) for roots, difference in self.rotation.factors)

    def _turned(self, turn: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        sharded = wrapped(value, self.like)
        assert isinstance(sharded, DTensor)
        return self._here(turn(sharded.full_tensor()))

    def _here(self, whole: Tensor) -> Tensor:
        placements = [
            Replicate() if isinstance(placement, Shard) and whole.shape[placement.dim] == 1 else placement
            for placement in self.like.placements
        ]
        return distribute_tensor(whole, self.like.device_mesh, placements, src_data_rank=None).to_local()


def wrapped(value: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a tensor as that tensor, sharded like another; a DTensor only if that is one."""
    if not isinstance(like, DTensor):
        return value
    return DTensor.from_local(
        value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def rotation_here(rotation: Rotation, parameter: Tensor) -> Turn:
    """The coordinates of what this process holds of a parameter.

    Args:
        rotation: of the whole parameter, on its device.
        parameter: whole, or a DTensor.
    """
    if not isinstance(parameter, DTensor):
        return rotation
    mesh = parameter.device_mesh
    sharded = [i for i, placement in enumerate(parameter.placements) if not isinstance(placement, Replicate)]
    if not sharded:
        return rotation
    placement = parameter.placements[sharded[0]]
    if len(sharded) > 1 or type(placement) is not Shard:
        return GatheredRotation(rotation, parameter)
    dim, (axis, size) = placement.dim, (rotation.maps[placement.dim], mesh.size(sharded[0]))
    bounds, rank = shard_bounds(axis.new, size), mesh.get_local_rank(sharded[0])
    elsewhere = [copies_elsewhere(axis, *one) for one in bounds]
    (start, stop), units = bounds[rank], torch.arange(axis.new)
    maps = list(rotation.maps)
    maps[dim] = chosen(axis, torch.cat([units[start:stop], elsewhere[rank]]))
    here = Rotation(tuple(maps), rotation.device)
    if not any(len(one) for one in elsewhere):
        return here
    for_each = [one[(one >= start) & (one < stop)] - start for one in elsewhere]
    exchange = Exchange(
        group=mesh.get_group(sharded[0]),
        send=torch.cat(for_each).to(rotation.device),
        sent=tuple(map(len, for_each)),
        received=tuple(int(((elsewhere[rank] >= a) & (elsewhere[rank] < b)).sum()) for a, b in bounds),
    )
    return ShardedRotation(here, dim, stop - start, exchange)


def shard_bounds(size: int, processes: int) -> list[tuple[int, int]]:
    """The units (start, stop) that each process holds of a dimension, as torch shards it."""
    most = -(-size // processes)
    return [(min(most * i, size), min(most * (i + 1), size)) for i in range(processes)]


def copies_elsewhere(axis: CopyMap, start: int, stop: int) -> Tensor:
    """(N,) units outside of start..stop that are copies of the same old unit as one of those, in order."""
    copied = axis.count > 1
    mine = torch.zeros(axis.old, dtype=torch.bool)
    mine[axis.source[start:stop][copied[start:stop]]] = True
    outside = copied & mine[axis.source]
    outside[start:stop] = False
    return outside.nonzero().flatten()


def chosen(axis: CopyMap, units: Tensor) -> CopyMap:
    """The map of some units, all copies of an old unit or none."""
    return CopyMap(axis.source[units], axis.number[units], axis.count[units], axis.part[units], axis.old)
