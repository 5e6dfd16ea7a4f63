"""`torchrun ... -m tests.helpers.shards_in_processes REQUESTS`: trainings of a JSON file, one after the other.

Each process writes REQUESTS.RANK.json: for each training, what it had before its first step. That is: names of
parameters and buffers that are not bit for bit those of `from_pretrained` (or of the checkpoint that is resumed), how
many numbers it has and how many it read from the disk while shards were read, whether the head is the embedding, and
the error that ended it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hyperclone.hf import parameter_names
from tests.helpers import launch_on_cpu


def _reference(model: Path, checkpoint: Path | None) -> dict[str, Tensor]:
    """Every parameter and buffer as transformers loads it, or as the checkpoint has it."""
    from transformers import AutoModelForCausalLM

    from hyperclone.optimizer_state.distributed import DistributedTensors

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    tensors: dict[str, Tensor] = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    if checkpoint is not None:
        saved = DistributedTensors(checkpoint / "pytorch_model_fsdp_0")
        tensors |= {key.removeprefix("model."): saved.read(key) for key in saved.entries}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in loaded.all_tied_weights_keys}
    return tensors


def _differing(model: Any, reference: dict[str, Tensor]) -> list[str]:
    """Names of what a sharded model has otherwise; all processes take part."""
    mine = {**dict(parameter_names.named_parameters(model)), **dict(parameter_names.unwrap(model).named_buffers())}
    wrong = sorted(mine.keys() ^ reference.keys())
    for name in sorted(mine.keys() & reference.keys()):
        value = mine[name].detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if whole.dtype != reference[name].dtype or not torch.equal(whole, reference[name]):
            wrong.append(name)
    return sorted(wrong)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train as asked, and tell what was there before the first step."""
    import hyperclone
    from hyperclone.errors import HypercloneError
    from hyperclone.io.tensor_files import TensorFiles
    from hyperclone.training import shard_reading

    found: dict[str, Any] = {"by_shards": False, "read": 0}
    begin, read_shards, read = (
        shard_reading.ShardReadingCallback.on_train_begin, shard_reading.read_shards, TensorFiles.read,
    )  # fmt: skip

    def counted(self: TensorFiles, *arguments: Any, **options: Any) -> Tensor:
        tensor = read(self, *arguments, **options)
        found["read"] += tensor.numel()
        return tensor

    def counting(*arguments: Any) -> None:
        with mock.patch.object(TensorFiles, "read", counted):
            read_shards(*arguments)

    def compared(self: Any, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        begin(self, args, state, control, model=model, **more)
        found["by_shards"] = True
        found["mine"] = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
        found["head_is_embedding"] = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        found["differing"] = _differing(model, _reference(Path(request["model"]), self._prepared.checkpoint))

    with (
        mock.patch.object(shard_reading, "read_shards", counting),
        mock.patch.object(shard_reading.ShardReadingCallback, "on_train_begin", compared),
    ):
        try:
            hyperclone.train(hyperclone.Training(**request))
        except HypercloneError as error:
            found["error"] = str(error)
    return found


if __name__ == "__main__":
    launch_on_cpu.allow_shards()
    requests = Path(sys.argv[1])
    results = [run(request) for request in json.loads(requests.read_text())]
    requests.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(results))
