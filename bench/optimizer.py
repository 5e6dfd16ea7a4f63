"""The cost of a step of rotated AdamW over all tensors of a real model, against torch's AdamW: time and memory.

    python -m bench.optimizer [--layers 30] [--rounds 5] [--threads 1] [-o bench/results/optimizer.json]

The tensors are those of SmolLM2-135M's clones, in fp32, with random weights and gradients. The optimizers take turns,
each with a first step that is not measured; ratios are taken within a round. Memory is what a step needs beside
weights, gradients and state, over the largest tensor: the allocator's peak on a GPU; on a CPU the largest sum of live
temporary tensors by torch's profiler. On a GPU all is the same but the kernel, which is torch.compile's there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hyperclone.expansion import compiled, grown_tensors
from hyperclone.io.hub import Headers
from hyperclone.optim.rotated_adamw import RotatedAdamW
from hyperclone.optim.rotation import Rotation
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.plan import Plan
from hyperclone.training import hardware

SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
BASE = "adamw, fused"
CLONES = {
    "2x": Growth(width=2),
    "2x interleaved": Growth(width=2, order="interleaved"),
    "3x": Growth(width=3),
    "2x, ffn 2.5x": Growth(hidden=2, heads=2, ffn=2.5),
}
Tensors = dict[str, torch.nn.Parameter]


def plan_of(growth: Growth, layers: int) -> Plan:
    """The plan of a clone of so many layers; larger clones have a third of them, so that they fit."""
    if growth.width != 2:
        layers = max(1, layers // 3)
    return planner.make_plan(Headers.from_config({**SMOLLM2, "num_hidden_layers": layers}, dtype="F32"), growth)


def tensors_of(plan: Plan, device: str) -> Tensors:
    """Random weights with random gradients."""
    made = {}
    for tensor in plan.tensors:
        made[tensor.name] = torch.nn.Parameter(torch.randn(tensor.shape, device=device))
        made[tensor.name].grad = torch.randn(tensor.shape, device=device)
    return made


def adamw(tensors: Tensors, **options: Any) -> torch.optim.Optimizer:
    """Torch's."""
    return torch.optim.AdamW(tensors.values(), weight_decay=0.1, **options)


def rotated(tensors: Tensors, plan: Plan, **options: Any) -> torch.optim.Optimizer:
    """Ours, of a clone."""
    group = {"params": list(tensors.values()), "param_names": list(tensors), "weight_decay": 0.1}
    turned = {tensor.name: Rotation(grown_tensors.map_of(tensor, plan).dims) for tensor in plan.tensors}
    return RotatedAdamW([group], turned, differences=8.0, **options)


@contextmanager
def without_kernel() -> Iterator[None]:
    """Steps by torch's operations."""
    os.environ["HYPERCLONE_KERNELS"] = "off"
    compiled.kernels.cache_clear()
    yield
    del os.environ["HYPERCLONE_KERNELS"]
    compiled.kernels.cache_clear()


def seconds(step: Callable[[], Any]) -> float:
    """Time of a step."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def temporary(step: Callable[[], Any], *, gpu: bool) -> int:
    """Bytes that a step needs beside weights, gradients and state."""
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    live = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def measured(make: Callable[[], torch.optim.Optimizer], *, gpu: bool, repeats: int) -> tuple[float, int]:
    """Median seconds of a step of a fresh optimizer, and bytes."""
    optimizer = make()
    seconds(optimizer.step)
    times = [seconds(optimizer.step) for _ in range(repeats)]
    return statistics.median(times), temporary(optimizer.step, gpu=gpu)


def rounds_of(layers: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, float]]:
    """Nanoseconds a weight, ratios to fused AdamW, and memory over the largest tensor, by optimizer."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    times: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for name, growth in CLONES.items():
        plan = plan_of(growth, layers)
        tensors = tensors_of(plan, device)
        arms: dict[str, Callable[[], torch.optim.Optimizer]] = {
            BASE: partial(adamw, tensors, fused=True),
            f"rotated, {name}": partial(rotated, tensors, plan, compile=gpu),
        }
        if name == "2x":
            arms["adamw, as torch chooses"] = partial(adamw, tensors)
            arms["rotated, 2x, torch's operations"] = arms[f"rotated, {name}"]
        largest = max(one.nbytes for one in tensors.values())
        for _ in range(rounds):
            found = {}
            for arm, make in arms.items():
                plainly = arm.endswith("operations")
                with without_kernel() if plainly else torch.no_grad():
                    found[arm], needed = measured(make, gpu=gpu, repeats=1 if plainly else 3)
                memory[arm] = max(memory.get(arm, 0.0), round(needed / largest, 2))
                times.setdefault(arm, []).append(found[arm] / plan.parameters * 1e9)
            for arm, time_taken in found.items():
                if arm != BASE:
                    ratios.setdefault(arm, []).append(time_taken / found[BASE])
        del tensors, arms
    return times, ratios, memory


def main() -> None:
    """All optimizers in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    times, ratios, memory = rounds_of(args.layers, args.rounds)

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": round(statistics.median(values), 3), "lowest": round(min(values), 3),
                "highest": round(max(values), 3)}  # fmt: skip

    found = {
        "date": f"{date.today():%Y-%m-%d}",
        "hardware": {**hardware.this_machine(), "load": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numba")}
        | {"python": platform.python_version()},
        "layers": args.layers,
        "weights": {name: plan_of(growth, args.layers).parameters for name, growth in CLONES.items()},
        "nanoseconds_per_weight": {arm: spread(values) for arm, values in times.items()},
        "ratio_to_fused_adamw": {arm: spread(values) for arm, values in ratios.items()},
        "temporary_memory_over_largest_tensor": memory,
    }
    print(json.dumps(found, indent=1))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
