"""Weights of a sharded run: each process reads from the disk only what it holds of them.

The model is built without memory for its weights (hf/unread_model.py), accelerate shards that as it would any other,
and then its shards are read. What cannot be read so is loaded whole by every process before it is sharded: random
weights, of which each process draws all so that they are those of one process; weights that transformers converts from
another type, or that are named otherwise than it would save them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hyperclone.errors import HypercloneError, TrainingError
from hyperclone.hf import parameter_names
from hyperclone.hf.unread_model import UnreadModel
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.optim.sharded_rotation import shard_bounds
from hyperclone.training import packing, resume
from hyperclone.training.config import Training
from hyperclone.training.preparation import PreparedRun

_LOOKED_AT = 256  # rows of the embedding that are there before the shards are (doubts.py)


def unread_model(directory: Path, training: Training) -> UnreadModel | None:
    """The model of a run whose shards are read later; None where it is to be loaded whole.

    Its first rows of the embedding are there already.

    Args:
        directory: the model's.
        training: the request.
    """
    if training.from_scratch or not _is_sharded(training):
        return None
    try:
        stored = Checkpoint.open(directory)
        if not stored.as_found or stored.left_out is not None:
            return None
        unread = UnreadModel(stored, torch.float32)
    except HypercloneError:  # loading it whole says better what is wrong, if anything is
        return None
    if unread.problems:
        return None
    embedding = unread.module.get_input_embeddings().weight
    name = next(name for name, parameter in unread.module.named_parameters() if parameter is embedding)
    with torch.no_grad():
        rows = min(_LOOKED_AT, embedding.shape[0])
        embedding[:rows] = unread.rows(name, 0, rows)
    return unread


def _is_sharded(training: Training) -> bool:
    """Whether FSDP2 shards the model: as the request asks, or as accelerate's launcher does by environment variables.

    If the launcher is told to, accelerate itself sends every process its shards of what the first one has loaded.
    """

    def is_set(name: str) -> bool:
        return os.environ.get(name, "").lower() in ("true", "1", "yes")

    launched = is_set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") == "2"
    return training.sharding != "none" or (launched and not is_set("FSDP_CPU_RAM_EFFICIENT_LOADING"))


def read_shards(unread: UnreadModel, model: nn.Module) -> None:
    """Read what this process holds of each parameter.

    Args:
        unread: whose weights they are.
        model: its module, wrapped and sharded.

    Raises:
        CheckpointError: a file cannot be read, or was changed.
    """
    with torch.no_grad():
        for name, parameter in parameter_names.named_parameters(model):
            mine, start, stop = _mine(parameter.detach())
            if stop > start:
                mine.copy_(unread.rows(name, start, stop))


def _mine(parameter: Tensor) -> tuple[Tensor, int, int]:
    """The rows that this process holds of a parameter, and where they begin and end."""
    if not isinstance(parameter, DTensor):
        return parameter, 0, parameter.shape[0] if parameter.dim() else 1
    [placement], mesh = parameter.placements, parameter.device_mesh
    assert placement.is_shard(0), placement  # what FSDP2 does
    start, stop = shard_bounds(parameter.shape[0], mesh.size())[mesh.get_local_rank()]
    mine = parameter.to_local()
    assert mine.shape[0] == stop - start, (mine.shape, start, stop)
    return mine, start, stop


class ShardReadingCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Reads the shards once the model is sharded; a checkpoint that is resumed has brought its own."""

    def __init__(self, unread: UnreadModel, prepared: PreparedRun) -> None:
        self._unread, self._prepared = unread, prepared

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Read them, and check what can only be checked with weights.

        Raises:
            CheckpointError: a file cannot be read, or was changed.
            TrainingError: the model's attention does not stay inside documents, as it was asked to.
        """
        prepared = self._prepared
        if prepared.checkpoint is None:
            read_shards(self._unread, model)
        if prepared.training.documents != "isolated":
            return
        try:
            packing.check_isolated(model, precision=prepared.precision)
        except TrainingError:
            if state.is_world_process_zero and prepared.checkpoint is None:
                resume.remove_record(prepared.output)  # it did not begin
            raise
