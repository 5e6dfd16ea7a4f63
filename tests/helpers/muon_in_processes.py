"""RotatedMuon on a small network in float64, alone or as one of several processes: `torchrun ... FILE`.

Prints, in the first process, for DistributedDataParallel and for FSDP2: the losses, every weight at the end, and how
often the processes communicated in the optimizer's steps.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hyperclone.expansion import copy_map
from hyperclone.optim.matrix_blocks import blocks_of
from hyperclone.optim.rotated_muon import RotatedMuon
from hyperclone.optim.rotation import Rotation

STEPS, BATCH = 4, 12
CALLS = ("all_to_all_single", "broadcast", "all_gather_into_tensor", "all_reduce")


def network() -> nn.Sequential:
    """Three matrices that grew 2x (rows that no two or three processes share evenly), and their biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 14), nn.Tanh(), nn.Linear(14, 6)).double()


def optimizer_of(model: nn.Module, names: dict[str, torch.Size], process_group: Any) -> RotatedMuon:
    """Muon on the matrices and rotated AdamW on the biases; names: the shapes of the whole parameters."""
    named = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    maps = {name: tuple(copy_map.axis(size // 2, size) for size in shape) for name, shape in names.items()}
    groups = [
        {"params": [p for n, p in named.items() if (len(names[n]) == 2) == muon],
         "param_names": [n for n in named if (len(names[n]) == 2) == muon],
         "lr": 0.02, "weight_decay": 0.1, "eps": 1e-7, "muon": muon}
        for muon in (True, False)
    ]  # fmt: skip
    blocks = {name: blocks_of(axes, reads=-1) for name, axes in maps.items() if len(axes) == 2}
    rotations = {name: Rotation(axes) for name, axes in maps.items()}
    return RotatedMuon(groups, rotations, blocks, differences=4.0, process_group=process_group)


def counted(function: Callable[..., Any], name: str, calls: Counter[str]) -> Callable[..., Any]:
    """The function, which counts its calls."""

    def call(*args: Any, **values: Any) -> Any:
        calls[name] += 1
        return function(*args, **values)

    return call


def trained(kind: str, rank: int = 0, processes: int = 1) -> list[Any]:
    """[losses, weights, calls] of a training: "alone", "ddp" or "fsdp"."""
    model: nn.Module = network()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if kind == "fsdp":
        for layer in list(model.children()):
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    elif kind == "ddp":
        model = DistributedDataParallel(model)
    optimizer = optimizer_of(model, shapes, model.process_group if isinstance(model, DistributedDataParallel) else None)
    generator, calls, losses = torch.Generator().manual_seed(1), Counter[str](), []
    whole = {name: getattr(dist, name) for name in CALLS}
    for _ in range(STEPS):
        inputs = torch.randn(BATCH, 10, generator=generator, dtype=torch.float64)
        targets = torch.randn(BATCH, 6, generator=generator, dtype=torch.float64)
        mine = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
        loss = nn.functional.mse_loss(model(inputs[mine]), targets[mine])
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        for name in CALLS:
            setattr(dist, name, counted(whole[name], name, calls))
        optimizer.step()
        for name in CALLS:
            setattr(dist, name, whole[name])
        optimizer.zero_grad()
        mean = loss.detach()
        if processes > 1:
            dist.all_reduce(mean)
        losses.append(float(mean) / processes)
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [losses, [w.flatten().tolist() for w in weights], dict(calls)]


def main() -> None:
    """Train both ways and print."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    found = {kind: trained(kind, rank, processes) for kind in ("ddp", "fsdp")}
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
