"""How fast this CPU multiplies fp32 matrices in torch, against the same product by oneDNN.

    python bench/matmul.py [--threads 1] [-o bench/results/matmul.json]

The products of a Llama with hidden_size 384 on 1024 tokens: forward pass, and the gradients of input and weight. torch
gives them to MKL, which does not use AVX-512 on some AMD processors. oneDNN, which also ships with torch, shows what
the processor can do. docs/study.md says what helps. Medians of seven rounds, in GFLOP/s.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hyperclone.training import hardware

TOKENS, SHAPES = 1024, {"attention": (384, 384), "feed-forward": (384, 1056), "head": (384, 2048)}


def seconds(product: Callable[[], Any], *, repeats: int = 20) -> float:
    """Median over rounds of the mean time of a product."""
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(repeats):
            product()
        rounds.append((time.perf_counter() - start) / repeats)
    return statistics.median(rounds)


def main() -> None:
    """Measure, print and, if asked to, write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = {}
    for name, (inputs, outputs) in SHAPES.items():
        x, w, g = torch.randn(TOKENS, inputs), torch.randn(outputs, inputs), torch.randn(TOKENS, outputs)
        products: dict[str, Callable[[], Any]] = {
            "forward": partial(torch.nn.functional.linear, x, w),
            "gradient of input": partial(torch.matmul, g, w),
            "gradient of weight": partial(torch.matmul, g.t(), x),
            "forward by oneDNN": partial(torch.ops.mkldnn._linear_pointwise, x, w, None, "none", [], ""),
        }
        operations = 2 * TOKENS * inputs * outputs
        rows[name] = {kind: round(operations / seconds(product) / 1e9) for kind, product in products.items()}
        print(f"{name:13}", "  ".join(f"{kind} {value}" for kind, value in rows[name].items()))
    record = {
        "date": str(date.today()), "torch": importlib.metadata.version("torch"), **hardware.this_machine(),
        "preloaded": [Path(library).name for library in os.environ.get("LD_PRELOAD", "").split(":") if library],
        "gflops": rows,
    }  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
