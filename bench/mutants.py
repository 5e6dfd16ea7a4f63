"""Does a broken formula fail a test? Breaks the arithmetic in one place at a time and runs tests on each broken copy.

    python bench/mutants.py --count 80 --seed 1 -o quick.json
    python bench/mutants.py --survivors quick.json --limit 900 --tests "tests/expansion tests/planning tests/proof"

A mutant is one change of one operator or constant: + for -, < for <=, 2 for 1, True for False, ... in a copy of src;
the repository itself is never touched. A mutant that no test notices is printed with its file, line and change.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ARITHMETIC = (
    "expansion/copy_map.py", "expansion/exact_split.py", "expansion/noise.py", "expansion/padding.py",
    "expansion/expand.py", "expansion/query_rows.py", "planning/scaling_rule.py", "planning/head_scaling.py",
    "planning/tied_head.py",
    "planning/depth.py", "optim/rotation.py",
)  # fmt: skip
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def places(tree: ast.Module) -> list[tuple[ast.AST, str, int]]:
    """(node, field, index) of everything that can be broken: operators, comparisons, numbers and truth values."""
    skipped = {id(n) for node in ast.walk(tree) if _is_text(node) for n in ast.walk(node)}
    found: list[tuple[ast.AST, str, int]] = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
            found.append((node, "op", 0))
        elif isinstance(node, ast.Compare):
            found += [(node, "ops", i) for i, op in enumerate(node.ops) if type(op) in SWAPS]
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            found.append((node, "value", 0))
    return found


def _is_text(node: ast.AST) -> bool:
    """Messages, annotations and imports: a change there is no broken formula."""
    return isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom)


def broken(text: str, number: int) -> tuple[str, str]:
    """(source text with its place `number` broken, what was changed)."""
    tree = ast.parse(text)
    node, field, index = places(tree)[number]
    before = ast.unparse(node)
    if field == "op":
        node.op = SWAPS[type(node.op)]()  # type: ignore[attr-defined]
    elif field == "ops":
        node.ops[index] = SWAPS[type(node.ops[index])]()  # type: ignore[attr-defined]
    else:
        value = node.value  # type: ignore[attr-defined]
        node.value = not value if isinstance(value, bool) else value + 1  # type: ignore[attr-defined]
    return ast.unparse(tree), f"line {getattr(node, 'lineno', 0)}: {before} -> {ast.unparse(node)}"


def mutants(count: int, seed: int) -> Iterator[tuple[str, int]]:
    """`count` (file, number of the place) drawn evenly from all places."""
    every = [
        (file, number)
        for file in ARITHMETIC
        for number in range(len(places(ast.parse((ROOT / "src/hyperclone" / file).read_text()))))
    ]
    yield from random.Random(seed).sample(every, min(count, len(every)))


def main() -> None:
    """Print the mutants that survive, and the share that was noticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", default="-m 'not slow and not matrix' tests/expansion tests/planning tests/optim")
    parser.add_argument("--limit", type=float, default=300.0, help="Seconds; what runs longer counts as noticed.")
    parser.add_argument("--survivors", type=Path, help="Only those that no test noticed in this earlier result.")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    chosen = list(mutants(args.count, args.seed))
    if args.survivors:
        before = json.loads(args.survivors.read_text())["mutants"]
        chosen = [(row["file"], row["number"]) for row in before if not row["noticed"]]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "src"
        shutil.copytree(ROOT / "src", source)
        environment = {**os.environ, "PYTHONPATH": f"{source}:{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(args.tests)]
        for file, number in chosen:
            target = source / "hyperclone" / file
            text = target.read_text()
            changed, change = broken(text, number)
            target.write_text(changed)
            began = time.monotonic()
            try:
                code = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=args.limit)
                noticed = code.returncode != 0
            except subprocess.TimeoutExpired:
                noticed = True
            target.write_text(text)
            rows.append({"file": file, "number": number, "change": change, "noticed": noticed})
            print(
                f"{'noticed ' if noticed else 'SURVIVED'} {time.monotonic() - began:5.0f} s  {file} {change}",
                flush=True,
            )
    share = sum(row["noticed"] for row in rows) / len(rows)
    print(f"{share:.1%} of {len(rows)} mutants noticed by: pytest {args.tests}")
    if args.output:
        args.output.write_text(json.dumps({"tests": args.tests, "seed": args.seed, "mutants": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
