"""What a growth spends its time on: reading, arithmetic, drawing, copying into the page cache, writing to the disk.

    python -m bench.parts path/to/model --work /scratch [--rounds 3] [-o bench/results/parts.json]

Each part by itself, in a process of its own, with the growth's own code where there is any (2x in every width, as many
threads as the growth has):

* start: the process by itself, which has loaded torch and numba, as all of them have;
* read: the source's bytes from the page cache into memory;
* read, split: the grown slices made and dropped, without noise; what is more than `read` is arithmetic;
* read, split, draw: the same with the default noise; what is more is drawing;
* page cache: as many bytes as the output's written from one buffer, nothing synced;
* page cache, disk: the same with an fsync of each file; what is more is the disk;
* grow: the whole command, until everything is on the disk.

The parts overlap in a growth, so their wall times add up to more than its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from bench.grow import Cost, fresh, hyperclone, measure, publish, warm
from hyperclone.io.buffers import Buffers
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.streaming import run_all, worker_pool
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.plan import TensorPlan

BLOCK = 16 << 20
PARTS = ("start", "read", "read, split", "read, split, draw", "page cache", "page cache, disk", "grow")


def read(source: Path) -> None:
    """Read the weights with the threads of a growth."""

    def read_file(path: Path) -> None:
        buffer = bytearray(BLOCK)
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    with worker_pool(None) as pool:
        run_all(pool, read_file, sorted(source.glob("*.safetensors")))


def split(source: Path, growth: Growth) -> None:
    """Make every slice of the grown model, and drop it."""
    from hyperclone.expansion import compiled
    from hyperclone.expansion.grown_tensors import grown_slices

    checkpoint = Checkpoint.open(source)
    plan = planner.make_plan(checkpoint, growth)
    fast, buffers = compiled.worthwhile(plan), Buffers()

    def make(tensor: TensorPlan) -> None:
        for _ in grown_slices(tensor, plan, checkpoint, buffers=buffers, fast=fast):
            pass

    with worker_pool(None) as pool:
        run_all(pool, make, sorted(plan.tensors, key=lambda tensor: -tensor.nbytes))


def write(target: Path, nbytes: int, *, sync: bool) -> None:
    """Write as many bytes as the output has, in files of 5 GB."""
    buffer, file = os.urandom(BLOCK), count()
    while nbytes > 0:
        with (target / str(next(file))).open("wb", buffering=0) as stream:
            for _ in range(min(-(-nbytes // BLOCK), int(5e9) // BLOCK)):
                nbytes -= stream.write(buffer)
            if sync:
                os.fsync(stream.fileno())


def bench(source: Path, work: Path, rounds: int) -> dict[str, Any]:
    """All parts in turn."""
    costs: dict[str, list[Cost]] = {part: [] for part in PARTS}
    out, scratch = work / "grown", work / "written"
    nbytes = 0
    this = [sys.executable, "-m", "bench.parts", str(source), "--work", str(scratch), "--one"]
    warm(source)
    for _ in range(rounds):
        costs["grow"].append(measure(hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "none")))
        nbytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        fresh(out)
        for part in PARTS[:-1]:
            fresh(scratch).mkdir()
            # Only a growth and the last part wait for the disk.
            costs[part].append(measure([*this, part, "--bytes", str(nbytes)], sync="disk" in part))
        fresh(scratch)
    return {
        "source": source.name,
        "output_bytes": nbytes,
        **{
            unit: {part: [round(value(cost), 2) for cost in found] for part, found in costs.items()}
            for unit, value in _UNITS.items()
        },
    }


_UNITS: dict[str, Callable[[Cost], float]] = {
    "seconds": lambda cost: cost.seconds,
    "user_seconds": lambda cost: cost.user,
    "system_seconds": lambda cost: cost.system,
}


def one(part: str, source: Path, scratch: Path, nbytes: int) -> None:
    """One part, in this process."""
    import numba  # noqa: F401
    import torch  # noqa: F401

    if part == "start":
        return
    if part == "read":
        read(source)
    elif part.startswith("page cache"):
        write(scratch, nbytes, sync="disk" in part)
    else:
        split(source, Growth(width=2) if "draw" in part else Growth(width=2, noise="none"))


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch directory on the disk to measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.source, args.work, args.bytes)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    publish({"what": "parts", "figures": bench(args.source, args.work, args.rounds)}, args.output)


if __name__ == "__main__":
    main()
