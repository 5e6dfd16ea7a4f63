"""Work on whole matrices, shared out among processes: each matrix is worked on by one of them.

Sharded matrices are sent to that process and back, each once. Replicated ones are there already; only the results are
sent. Matrices take turns in rounds, one for each process, so that no process holds more than one whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from hyperclone.optim.sharded_rotation import shard_bounds, wrapped

Transform = Callable[[Tensor], Tensor]  # of a whole matrix; the result has its shape


def transformed(
    matrices: Iterable[Tensor], transforms: Sequence[Transform], *, process_group: ProcessGroup | None
) -> Iterator[Tensor]:
    """The transform of every matrix, in order, sharded like it.

    Every process must call it with the same matrices in the same order.

    Args:
        matrices: local, replicated, or DTensors.
        transforms: one for each.
        process_group: whose processes all have the same local matrices; None if they are this process's own.
    """
    pending: list[tuple[Tensor, Transform]] = []
    for matrix, transform in zip(matrices, transforms, strict=True):
        if pending and not _alike(pending[0][0], matrix, process_group):
            yield from _round(pending, process_group)
            pending = []
        pending.append((matrix, transform))
        group = _processes(matrix, process_group)
        if group is None or len(pending) == dist.get_world_size(group):
            yield from _round(pending, process_group)
            pending = []
    if pending:
        yield from _round(pending, process_group)


def _processes(matrix: Tensor, process_group: ProcessGroup | None) -> ProcessGroup | None:
    """The processes that share the work on a matrix; None if each does all of it."""
    if not isinstance(matrix, DTensor):
        return process_group
    mesh = matrix.device_mesh
    return mesh.get_group() if mesh.ndim == 1 and matrix.placements == (Shard(0),) else None


def _alike(first: Tensor, other: Tensor, process_group: ProcessGroup | None) -> bool:
    """Whether two matrices can be in one round: shared by the same processes, and sent as one type."""
    same_processes = _processes(first, process_group) is _processes(other, process_group)
    return same_processes and (first.dtype, first.device) == (other.dtype, other.device)


def _round(pending: list[tuple[Tensor, Transform]], process_group: ProcessGroup | None) -> list[Tensor]:
    """The results for at most as many matrices as there are processes."""
    first, group = pending[0][0], _processes(pending[0][0], process_group)
    if group is None:
        return [_everywhere(matrix, transform) for matrix, transform in pending]
    if isinstance(first, DTensor):
        return _sharded(pending, group)
    return _replicated(pending, group)


def _everywhere(matrix: Tensor, transform: Transform) -> Tensor:
    if not isinstance(matrix, DTensor):
        return transform(matrix)
    return distribute_tensor(transform(matrix.full_tensor()), matrix.device_mesh, matrix.placements, src_data_rank=None)


def _replicated(pending: list[tuple[Tensor, Transform]], group: ProcessGroup) -> list[Tensor]:
    """Matrix i is worked on by process i, which tells the others the result."""
    rank = dist.get_rank(group)
    results = [transform(matrix) if i == rank else torch.empty_like(matrix, dtype=_type(matrix))
               for i, (matrix, transform) in enumerate(pending)]  # fmt: skip
    works = [dist.broadcast(result, group=group, group_src=i, async_op=True) for i, result in enumerate(results)]
    for work in works:
        if work is not None:
            work.wait()
    return results


def _sharded(pending: list[tuple[Tensor, Transform]], group: ProcessGroup) -> list[Tensor]:
    """The shards of matrix i go to process i, and come back from there."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    matrices = [matrix for matrix, _ in pending if isinstance(matrix, DTensor)]
    shards = [matrix.to_local() for matrix in matrices]
    outgoing = [local.numel() for local in shards] + [0] * (size - len(pending))
    mine = matrices[rank] if rank < len(pending) else None
    incoming = [0] * size
    if mine is not None:
        width = mine.numel() // mine.shape[0]
        incoming = [(stop - start) * width for start, stop in shard_bounds(mine.shape[0], size)]
    like = shards[0]
    sent = torch.cat([local.reshape(-1) for local in shards])
    whole = like.new_empty(sum(incoming))
    dist.all_to_all_single(whole, sent, incoming, outgoing, group=group)
    result = torch.empty(0, dtype=_type(like), device=like.device)
    if mine is not None:
        result = pending[rank][1](whole.view(mine.shape)).reshape(-1)
    back = torch.empty(sum(outgoing), dtype=result.dtype, device=like.device)
    dist.all_to_all_single(back, result, outgoing, incoming, group=group)
    parts = torch.split(back, outgoing[: len(pending)])
    return [wrapped(part.view(shard.shape), like) for part, shard, like in zip(parts, shards, matrices, strict=True)]


def _type(matrix: Tensor) -> torch.dtype:
    """Of results: at least fp32."""
    return torch.promote_types(matrix.dtype, torch.float32)
