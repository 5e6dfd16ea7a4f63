"""Change one weight in every tensor of a grown model, and see which half of the proof notices.

    python -m bench.sabotage ~/.cache/hyperclone/SmolLM2-135M-Instruct --work /scratch -o bench/results/sabotage.json

A source is grown 2x. In every tensor one weight, drawn by a seed, is changed in the file: its lowest bit, its sign, or
it is doubled. The structural proof must name every tensor; it compares each on its own, so all are changed at once. The
behavioral proof is run on its own: with all of them changed, and with one at a time, of a tensor of each kind in a
layer drawn by the seed (`--in-turn 4`: of four kinds, drawn too). It is not made to notice one weight among millions:
what it adds is that it does not rely on the family file. Every change is undone; at the end the proof passes again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hyperclone
from bench.grow import fresh, publish
from hyperclone import Growth
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan
from hyperclone.proof import behavioral
from hyperclone.proof.structural import prove_structure

KINDS = ("lowest bit", "sign", "doubled")


@dataclass(frozen=True)
class Change:
    """One weight of a file, given by its position in the tensor, and its bits before and after."""

    tensor: str
    file: Path
    offset: int
    position: int
    before: bytes
    after: bytes

    def write(self, value: bytes) -> None:
        """Put bits into the file."""
        descriptor = os.open(self.file, os.O_WRONLY)
        try:
            os.pwrite(descriptor, value, self.offset)
        finally:
            os.close(descriptor)


def draw(model: Checkpoint, name: str, kind: str, seed: int) -> Change:
    """A change of one weight that is not zero, drawn by seed, kind and name; bf16, fp16 or fp32."""
    entry, choice = model.entries[name], random.Random(f"{seed} {kind} {name}")
    values = model.read(name).flatten()
    width = values.element_size()
    while True:
        position = choice.randrange(values.numel())
        value = values[position]
        if kind != "doubled":
            bits = value.view({2: torch.int16, 4: torch.int32}[width]).item()
            flipped = int(bits) ^ (1 if kind == "lowest bit" else -(1 << (8 * width - 1)))
            before, after = (number.to_bytes(width, "little", signed=True) for number in (int(bits), flipped))
        else:
            before, after = (bytes(one.view(1).view(torch.uint8).tolist()) for one in (value, value * 2))
        if float(value) != 0:
            return Change(name, model.path / entry.file, entry.offset + position * width, position, before, after)


@contextmanager
def made(changes: Sequence[Change]) -> Iterator[None]:
    """The changes are in the files meanwhile."""
    try:
        for change in changes:
            change.write(change.after)
        yield
    finally:
        for change in changes:
            change.write(change.before)


def named(source: Checkpoint, directory: Path, plan: Plan, changes: Sequence[Change]) -> set[str]:
    """The changed tensors that the structural proof names."""
    with made(changes):
        failures = prove_structure(source, directory, plan).failures
    return {change.tensor for change in changes if any(f.startswith(f"{change.tensor}: ") for f in failures)}


class _Pair(behavioral._ModelPair):
    """The source does not change, so its logits are computed once."""

    outputs: dict[torch.dtype, Any] = {}  # noqa: RUF012

    def run_source(self, source: Any, probes: Any, prompt: Any, steps: int, wide: torch.dtype) -> Any:
        if wide not in self.outputs:
            self.outputs[wide] = super().run_source(source, probes, prompt, steps, wide)
        return self.outputs[wide]

    def load_to_save(self) -> None:
        """Whatever a weight is, transformers saves it again."""


def behavior(source: Checkpoint, directory: Path, plan: Plan, changes: Sequence[Change]) -> dict[str, Any]:
    """Which comparisons of the behavioral proof fail, and the largest part of its tolerance that each type uses."""
    with made(changes):
        result = behavioral.prove_behavior(source, directory, plan)
    used: dict[str, float] = {}
    for m in result.measured:
        used[m.dtype] = max(used.get(m.dtype, 0.0), round(m.relative / m.tolerance, 2))
    return {
        "noticed": bool(result.failures),
        "failed": [f"{m.what}, {m.dtype}" for m in result.measured if not m.passed],
        "of_tolerance": used,
    }


def one_of_each(plan: Plan, seed: int) -> list[str]:
    """A tensor of each kind, in a layer drawn by the seed."""
    kinds: dict[str, list[str]] = {}
    for tensor in plan.tensors:
        kinds.setdefault(re.sub(r"\.\d+\.", ".{i}.", tensor.name), []).append(tensor.name)
    return [random.Random(f"{seed} {kind}").choice(sorted(names)) for kind, names in sorted(kinds.items())]


def measure(source_path: Path, grown: Path, *, seed: int, in_turn: Sequence[str]) -> dict[str, Any]:
    """The table."""
    hyperclone.grow(source_path, fresh(grown), Growth(width=2), proof="none")
    source, model = Checkpoint.open(source_path), Checkpoint.open(grown)
    plan = planner.make_plan(source, Growth(width=2))
    behavioral._ModelPair, _Pair.outputs = _Pair, {}  # type: ignore[misc]
    rows: dict[str, Any] = {}
    single = []
    for kind in KINDS:
        changes = [draw(model, name, kind, seed) for name in model.entries]
        rows[kind] = {
            "tensors": len(changes),
            "named_by_the_structural_proof": len(named(source, grown, plan, changes)),
            "behavioral": behavior(source, grown, plan, changes),
        }
        print(json.dumps({kind: rows[kind]}), file=sys.stderr, flush=True)
        for name in in_turn if kind == KINDS[-1] else ():
            change = draw(model, name, kind, seed)
            single.append({
                "tensor": name, "change": kind, "position": change.position,
                "named_by_the_structural_proof": bool(named(source, grown, plan, [change])),
                "behavioral": behavior(source, grown, plan, [change]),
            })  # fmt: skip
            print(json.dumps(single[-1]), file=sys.stderr, flush=True)
    assert prove_structure(source, grown, plan).passed
    return {
        "source": source_path.name, "growth": "--width 2", "seed": seed,
        "all_tensors_at_once": rows, "one_at_a_time": single,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the figures; exit code 1 if the structural proof missed a change."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="Scratch directory.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-turn", type=int, help="How many single changes the behavioral proof sees [all kinds].")
    parser.add_argument("-o", "--output", type=Path, help="Write the figures here as JSON.")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    plan = hyperclone.plan(args.source, Growth(width=2))
    in_turn = one_of_each(plan, args.seed)
    in_turn = random.Random(args.seed).sample(in_turn, min(len(in_turn), args.in_turn or len(in_turn)))
    figures = measure(args.source, args.work / "grown", seed=args.seed, in_turn=in_turn)
    fresh(args.work / "grown")
    publish(figures, args.output)
    changed = figures["all_tensors_at_once"].values()
    missed = any(row["tensors"] > row["named_by_the_structural_proof"] for row in changed)
    raise SystemExit(missed or not all(row["named_by_the_structural_proof"] for row in figures["one_at_a_time"]))


if __name__ == "__main__":
    main()
