"""The cost of a step of rotated AdamW against torch's AdamW: time for each weight, and memory that only the step needs.

    python bench/optimizer.py [--size 2048] [--rounds 7] [--threads 1] [-o bench/results/optimizer.json]

One square matrix that grew 2-fold and 4-fold in both directions, fp32. The optimizers take turns; the median of the
rounds counts. A share of a training step follows from the operations of a token: at B tokens a batch, forward and
backward pass take 6 B operations for each weight, whatever the optimizer.
Memory is the allocator's peak on a GPU; on a CPU the largest sum of live temporary tensors by torch's profiler.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from hyperclone.expansion import copy_map
from hyperclone.optim.rotated_adamw import RotatedAdamW
from hyperclone.optim.rotation import Rotation
from hyperclone.training import hardware


def make(kind: str, weight: torch.nn.Parameter, factor: int, *, compiled: bool) -> torch.optim.Optimizer:
    """An optimizer of one grown matrix."""
    if kind == "adamw":
        return torch.optim.AdamW([weight], weight_decay=0.1, fused=weight.is_cuda or None)
    size = weight.shape[0]
    axis = copy_map.axis(size // factor, size)
    group = {"params": [weight], "param_names": ["w"], "weight_decay": 0.1}
    return RotatedAdamW([group], {"w": Rotation((axis, axis))}, differences=8.0, compile=compiled)


def seconds(step: Callable[[], Any], *, repeats: int) -> float:
    """Mean time of a step."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def temporary(step: Callable[[], Any], weight: torch.nn.Parameter) -> float:
    """Memory that a step needs beside weight, gradient and state, over the weight's own."""
    if weight.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / weight.nbytes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    live = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most / weight.nbytes


def main() -> None:
    """All optimizers in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {
        "adamw": ("adamw", 1, False),
        "rotated, 2x": ("rotated", 2, False),
        "rotated, 2x, compiled": ("rotated", 2, True),
        "rotated, 4x": ("rotated", 4, False),
    }
    steps: dict[str, Callable[[], Any]] = {}
    memory = {}
    for name, (kind, factor, compiled) in kinds.items():
        weight = torch.nn.Parameter(torch.randn(args.size, args.size, device=device))
        weight.grad = torch.randn_like(weight)
        steps[name] = make(kind, weight, factor, compiled=compiled).step
        steps[name]()
        memory[name] = round(temporary(steps[name], weight), 2)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, repeats=5) / args.size**2 * 1e9)
    found = {
        "date": f"{date.today():%Y-%m-%d}",
        "hardware": {**hardware.this_machine(), "load": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")},
        "size": args.size,
        "nanoseconds_per_weight": {name: {"median": round(statistics.median(all_), 3), "lowest": round(min(all_), 3),
                                          "highest": round(max(all_), 3)} for name, all_ in times.items()},
        "temporary_memory_over_weight": memory,
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
