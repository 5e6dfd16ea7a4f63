"""Optimizers on a small network in float64, alone or as one of several processes: `torchrun ... FILE`.

Prints, in the first process, for each optimizer, order of the copies and kind of sharding: the losses, every weight at
the end, and how often the processes communicated in the optimizer's steps.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from hyperclone.expansion import copy_map
from hyperclone.optim.matrix_blocks import blocks_of
from hyperclone.optim.rotated_muon import RotatedMuon
from hyperclone.optim.rotation import Rotation
from hyperclone.planning.recipe import OrderName

STEPS, BATCH = 4, 12
OPTIMIZERS, SHARDINGS = ("rotated", "muon"), ("ddp", "fsdp")
ORDERS: tuple[OrderName, ...] = ("tiled", "interleaved")
# Rows that two processes share at even places; and that no processes do.
SIZES = {2: (8, 16, 16, 8), 3: (10, 14, 14, 6)}


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    """Three matrices, all of whose dimensions grew 2x, and their biases."""
    torch.manual_seed(0)
    layers = [nn.Linear(columns, rows) for columns, rows in itertools.pairwise(sizes)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).double()


def optimizer_of(model: nn.Module, shapes: dict[str, torch.Size], optimizer: str, order: OrderName) -> RotatedMuon:
    """Muon for the matrices, or rotated AdamW for everything; shapes: of the whole parameters."""
    named = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    maps = {
        name: tuple(copy_map.axis(size // 2, size, order=order) for size in shape) for name, shape in shapes.items()
    }
    by_muon = {name for name, axes in maps.items() if len(axes) == 2 and optimizer == "muon"}
    groups = [
        {"params": [p for n, p in named.items() if (n in by_muon) == muon],
         "param_names": [n for n in named if (n in by_muon) == muon],
         "lr": 0.02, "weight_decay": 0.1, "eps": 1e-7, "muon": muon}
        for muon in ((True, False) if by_muon else (False,))
    ]  # fmt: skip
    return RotatedMuon(
        groups, {name: Rotation(axes) for name, axes in maps.items()},
        {name: blocks_of(maps[name], reads=-1) for name in by_muon}, differences=4.0,
        process_group=model.process_group if isinstance(model, DistributedDataParallel) else None,
    )  # fmt: skip


def trained(optimizer_name: str, order: OrderName, sharding: str, *, processes: int, rank: int | None = None) -> Any:
    """[losses, weights, how often anything was sent in the steps]. rank: None for this process alone."""
    model: nn.Module = network(SIZES[processes])
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if rank is not None and sharding == "fsdp":
        for layer in list(model.children()):
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    elif rank is not None:
        model = DistributedDataParallel(model)
    optimizer = optimizer_of(model, shapes, optimizer_name, order)
    generator, sent, losses = torch.Generator().manual_seed(1), 0, []
    for _ in range(STEPS):
        inputs = torch.randn(BATCH, SIZES[processes][0], generator=generator, dtype=torch.float64)
        targets = torch.randn(BATCH, SIZES[processes][-1], generator=generator, dtype=torch.float64)
        mine = slice(None) if rank is None else slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
        loss = nn.functional.mse_loss(model(inputs[mine]), targets[mine])
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        with CommDebugMode() as communication:  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
        sent += communication.get_total_counts()
        optimizer.zero_grad()
        mean = loss.detach()
        if rank is not None:
            dist.all_reduce(mean)
            mean /= processes
        losses.append(float(mean))
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [losses, [w.flatten().tolist() for w in weights], sent]


def main() -> None:
    """Train in every way and print."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    found = {
        f"{optimizer} {order} {sharding}": trained(optimizer, order, sharding, processes=processes, rank=rank)
        for optimizer, order, sharding in itertools.product(OPTIMIZERS, ORDERS, SHARDINGS)
    }
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
