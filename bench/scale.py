"""What training a grown model on 64 GPUs takes, by formula: memory of a rank, tokens/s, days.

    python bench/scale.py [--gpus 64] [--mfu 0.4] [-o bench/results/scale.json]

Nothing here is measured: sizes come from plans of the growths, everything else from these formulas, so that readers can
put in their own numbers.

Bytes for each parameter: weights and gradients in fp32 (4 + 4) and AdamW's two moments (8), all sharded over the ranks
by FSDP2. With full sharding, a rank holds the whole bf16 weights (2) of two layers at a time; with sharding of
gradients and moments only (as in ZeRO-2), of all layers.

Activations of a micro-batch of b windows of T tokens, for each layer, in bf16 with an attention that keeps no scores
(Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, without its score and dropout terms): the layer's input and
that of each norm and each matrix, 2 bytes for each value. With gradient checkpointing only the input of each layer is
kept, and one layer is recomputed at a time. The logits and their gradient are kept in fp32 (8 bytes for each token and
vocabulary entry).

Speed: tokens/s = GPUs x peak x MFU / (6 N + 12 L H Q T) (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone import Growth
from hyperclone.io.hub import Headers
from hyperclone.planning import planner
from hyperclone.training.estimate import flops_per_token

PEAK = 989e12  # H100 SXM, dense bf16
MEMORY = 80e9


@dataclass(frozen=True)
class Case:
    """A growth of the paper, or a common one."""

    name: str
    config: dict[str, Any]
    growth: Growth
    seq_len: int
    micro_batch: int


CASES = (
    Case(
        "OPT 350M -> 1.3B",
        {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 1024, "ffn_dim": 4096,
         "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 50272, "max_position_embeddings": 2048},
        Growth(width=2), seq_len=1024, micro_batch=8,
    ),
    Case(
        "OLMo 1B -> 2.9B",
        {"model_type": "olmo", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 16, "vocab_size": 50304, "max_position_embeddings": 2048, "tie_word_embeddings": True},
        Growth(hidden=2, heads=2, ffn="1x"), seq_len=2048, micro_batch=4,
    ),
    Case(
        "Llama 8B -> 30B",
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
         "tie_word_embeddings": False},
        Growth(width=2), seq_len=4096, micro_batch=1,
    ),
)  # fmt: skip


def figures(case: Case, *, gpus: int, mfu: float) -> dict[str, Any]:
    """The figures of one case."""
    plan = planner.make_plan(Headers.from_config(case.config, dtype="BF16"), case.growth)
    sizes = {axis: new for axis, (_, new) in plan.sizes.items()}
    heads = sizes["heads"] if "heads" in sizes else sizes["kv_heads"] * sizes["group"]
    kv_heads = sizes.get("kv_heads", heads)
    layers, hidden, width = len(plan.layers), sizes["hidden"], heads * sizes["head_dim"]
    in_layers = sum(math.prod(t.shape) for t in plan.tensors if any(part.isdigit() for part in t.name.split(".")))
    flops = flops_per_token(plan, case.seq_len)

    tokens = case.seq_len * case.micro_batch
    gated = any("gate_proj" in t.name for t in plan.tensors)
    ffn = (3 if gated else 2) * sizes["ffn"]  # up, gate, and the input of the last matrix
    # Two norms and two residuals, queries and the output of attention, keys and values, feed-forward.
    layer = 2 * tokens * (4 * hidden + 2 * width + 2 * kv_heads * sizes["head_dim"] + ffn)
    logits = 8 * tokens * sizes["vocab"]
    activations = {"kept": layers * layer + logits, "checkpointed": layers * 2 * tokens * hidden + layer + logits}
    sharded, outside = 16 * plan.parameters / gpus, 2 * (plan.parameters - in_layers)
    whole = {"gradients": 2 * plan.parameters, "full": 2 * 2 * in_layers / layers + outside}
    speed = gpus * PEAK * mfu / flops
    return {
        "case": case.name,
        "source_parameters": plan.source_parameters,
        "parameters": plan.parameters,
        "flops_per_token": flops,
        "state_per_rank": sharded,
        "whole_weights": whole,
        "activations": activations,
        "memory_per_rank": {
            f"{sharding}, {kept}": sharded + whole[sharding] + activations[kept]
            for sharding in whole
            for kept in activations
        },
        "tokens_per_second": speed,
        "days_for_20_tokens_per_parameter": 20 * plan.parameters / speed / 86400,
        "sequence": case.seq_len,
        "micro_batch": case.micro_batch,
    }


def table(rows: list[dict[str, Any]], *, gpus: int, mfu: float) -> str:
    """The figures as Markdown."""
    lines = [
        f"| {gpus} x H100 80 GB, MFU {mfu:.0%} | " + " | ".join(row["case"] for row in rows) + " |",
        "|---|" + "---:|" * len(rows),
    ]

    def line(label: str, values: list[str]) -> None:
        lines.append(f"| {label} | " + " | ".join(values) + " |")

    line("parameters", [f"{row['source_parameters'] / 1e9:.2f}B -> {row['parameters'] / 1e9:.2f}B" for row in rows])
    line("windows of a rank x tokens", [f"{row['micro_batch']} x {row['sequence']:,}" for row in rows])
    line("FLOPs for a token", [f"{row['flops_per_token'] / 1e9:.1f} G" for row in rows])
    line("weights, gradients, moments", [f"{row['state_per_rank'] / 1e9:.1f} GB" for row in rows])
    for key in rows[0]["memory_per_rank"]:
        sharding, kept = key.split(", ")
        needed = [row["memory_per_rank"][key] for row in rows]
        line(
            f"**memory of a rank**: `--sharding {sharding}`, activations {kept}",
            [f"{size / 1e9:.1f} GB" + (" (no)" if size > 0.92 * MEMORY else "") for size in needed],
        )
    line("**tokens/s**", [f"{row['tokens_per_second'] / 1e6:.2f} M" for row in rows])
    line("**days** for 20 tokens per parameter", [f"{row['days_for_20_tokens_per_parameter']:.1f}" for row in rows])
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed model FLOPs utilization")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    args = parser.parse_args()
    rows = [figures(case, gpus=args.gpus, mfu=args.mfu) for case in CASES]
    print(table(rows, gpus=args.gpus, mfu=args.mfu))
    if args.output:
        content = {"gpus": args.gpus, "mfu": args.mfu, "peak": PEAK, "cases": rows}
        args.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
