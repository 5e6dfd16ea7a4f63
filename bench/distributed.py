"""What optimizers of copies send in a step under FSDP2, by order of the copies and number of ranks: counted from plans.

    python -m bench.distributed [--ranks 8 64] [--tensors] [-o bench/results/distributed.json]

Nothing is trained. FSDP2 shards each parameter along its first dimension. Rotated AdamW exchanges the units whose
copies lie in other shards, of the gradient and back of the step (optim/sharded_rotation.py);
tests/optim/test_sharded.py counts that nothing else is sent. Muon sends each hidden matrix to one rank and back
(optim/matrix_sharing.py). All that is sent in fp32. Beside it: what FSDP2 itself sends in a step of one micro-batch
(weights gathered in bf16 for the forward and the backward pass, gradients reduced in fp32), and what rotated AdamW
would send if it gathered every gradient and every step whole.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.scale import CASES
from hyperclone.expansion import grown_tensors
from hyperclone.io.hub import Headers
from hyperclone.optim.sharded_rotation import copies_elsewhere, shard_bounds
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.recipe import OrderName

ORDERS: tuple[OrderName, ...] = ("tiled", "interleaved")


def received(tensor: TensorPlan, plan: Plan, ranks: int) -> int:
    """Values that the rank which needs most of them receives in one exchange of a tensor; 0 where all are local."""
    axis = grown_tensors.map_of(tensor, plan).dims[0]
    most = max(len(copies_elsewhere(axis, *bounds)) for bounds in shard_bounds(axis.new, ranks))
    return most * math.prod(tensor.shape[1:])


def figures(name: str, plan: Plan, ranks: int) -> dict[str, Any]:
    """Bytes that a rank sends, and receives, in a step."""
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in plan.tensors}
    alike = {(tensor.layout, tensor.shape): tensor for tensor in plan.tensors}  # layers repeat them
    each = {kind: received(tensor, plan, ranks) for kind, tensor in alike.items()}
    exchanged = {tensor.name: each[tensor.layout, tensor.shape] for tensor in plan.tensors}
    hidden = sum(
        sizes[t.name] for t in plan.tensors
        if len(t.shape) in (2, 3) and t.layout.reads is not None and "vocab" not in t.layout.axes
    )  # fmt: skip
    rest = sum(exchanged[t.name] for t in plan.tensors if len(t.shape) == 1 or "vocab" in t.layout.axes)
    others, total = (ranks - 1) / ranks, plan.parameters
    return {
        "case": name,
        "order": plan.growth.order,
        "ranks": ranks,
        "parameters": total,
        "local_share": sum(size for tensor, size in sizes.items() if not exchanged[tensor]) / total,
        "bytes": {
            "rotated": 2 * 4 * sum(exchanged.values()),
            "muon": 2 * 4 * (round(hidden * others / ranks) + rest),
            "gathering": round(2 * 4 * total * others),
            "fsdp2": round((2 * 2 + 4) * total * others),
        },
        "exchanging": sorted({re.sub(r"\d+", "#", tensor) for tensor in sizes if exchanged[tensor]}),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| | ranks | order | parameters with local copies | rotated AdamW | Muon | if it gathered all | FSDP2 |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        sent = " | ".join(f"{size / 1e9:.2f} GB" if size else "0" for size in row["bytes"].values())
        lines.append(f"| {row['case']} | {row['ranks']} | {row['order']} | {row['local_share']:.1%} | {sent} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--tensors", action="store_true", help="name the tensors that exchange copies")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    args = parser.parse_args()
    rows = []
    for case in CASES:
        for ranks in args.ranks:
            for order in ORDERS:
                growth = replace(case.growth, order=order)
                plan = planner.make_plan(Headers.from_config(case.config, dtype="BF16"), growth)
                rows.append(figures(case.name, plan, ranks))
    print(table(rows))
    if args.tensors:
        for row in rows:
            print(f"{row['case']}, {row['ranks']} ranks, {row['order']}: {', '.join(row['exchanging']) or 'none'}")
    if args.output:
        args.output.write_text(json.dumps({"cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
