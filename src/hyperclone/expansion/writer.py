"""Writing a grown model into a destination that is not published yet: read, expand and write in slices."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hyperclone.expansion.grown_tensors import grown_slices
from hyperclone.expansion.routers import with_drawn
from hyperclone.io import shards
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.io.files import to_json
from hyperclone.io.source import Weights
from hyperclone.io.streaming import Progress, write_shards
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan


def write(
    made: Plan,
    origin: Checkpoint,
    target: Destination,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the grown model into a destination that is not published yet: weights, config, what is carried over."""
    _write_weights(made, origin, target, threads=threads, progress=progress)
    target.carry(origin.carried_files, root=origin.path)
    target.write_text("config.json", to_json(made.config))
    if (content := shards.index(made.shards, planner.tensor_headers(made.tensors))) is not None:
        target.write_text("model.safetensors.index.json", to_json(content))


def _write_weights(
    made: Plan, origin: Weights, target: Destination, *, threads: int | None, progress: Progress | None
) -> None:
    """Write every weight file that is not finished yet."""
    origin = with_drawn(origin, made)
    tensors = {tensor.name: tensor for tensor in made.tensors}

    def pieces(name: str) -> Iterator[Tensor]:
        return grown_slices(tensors[name], made, origin)

    write_shards(made.shards, target, pieces, stage="grow", threads=threads, progress=progress)
