"""Writing a grown model into a destination that is not published yet: read, expand and write in slices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from hyperclone.expansion import compiled
from hyperclone.expansion.grown_tensors import grown_slices
from hyperclone.expansion.routers import with_random_routers
from hyperclone.io import shards
from hyperclone.io.buffers import Buffers
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.io.files import to_json
from hyperclone.io.source import Weights
from hyperclone.io.streaming import Progress, write_shards
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan


def write(
    plan: Plan,
    source: Checkpoint,
    target: Destination,
    *,
    config: dict[str, Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write weights, config and the files that are carried over; shards that are finished already are kept.

    Args:
        plan, source, target: what to write, from what, and where to.
        config: the content of config.json; by default the plan's.
        threads, progress: as of `write_shards`.
    """
    _write_weights(plan, source, target, threads=threads, progress=progress)
    target.carry(source.carried_files, root=source.path)
    target.write_text("config.json", to_json(plan.config if config is None else config))
    headers = planner.tensor_headers(plan.tensors, plan.omitted_prefix, plan.fused_in)
    if (content := shards.index(plan.shards, headers)) is not None:
        target.write_text("model.safetensors.index.json", to_json(content))


def _write_weights(
    plan: Plan, source: Weights, target: Destination, *, threads: int | None, progress: Progress | None
) -> None:
    """Write every weight file that is not finished yet."""
    source = with_random_routers(source, plan)
    tensors, buffers = {tensor.name: tensor for tensor in plan.tensors}, Buffers()
    fast = compiled.worthwhile(plan)

    def pieces(name: str) -> Iterator[Tensor]:
        return grown_slices(tensors[name], plan, source, buffers=buffers, fast=fast)

    write_shards(plan.shards, target, pieces, stage="grow", threads=threads, progress=progress)
