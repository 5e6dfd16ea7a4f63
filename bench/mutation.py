"""What a run of mutmut found: a table by module, and every change that no test noticed with what we make of it.

    PYTHONPATH=mutants/src:mutants HYPOTHESIS_PROFILE=quick python bench/run_mutants.py     (or `mutmut run`: hours)
    python bench/mutation.py -o bench/results/mutation.json

Of an older result, the reasons ("why") are kept with the same changes. Exit code 1 while a change has no reason.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

KINDS = {0: "survived", 1: "noticed", 3: "noticed", 5: "no test", 33: "no test", 24: "timeout", -24: "timeout",
         36: "timeout", 152: "timeout", 255: "timeout", None: "not run"}  # fmt: skip
COLUMNS = ("mutants", "noticed", "timeout", "survived", "no test", "other", "not run")


def main() -> None:
    """Print the table, and write it with the survivors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mutants", type=Path, default=Path("mutants"), help="What mutmut has made.")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/mutation.json"))
    args = parser.parse_args()
    modules, unnoticed = read(args.mutants)
    known = json.loads(args.output.read_text())["unnoticed"] if args.output.exists() else []
    reasons = {(one["function"], one["change"]): one["why"] for one in known}
    rows = [{**one, "why": reasons.get((one["function"], one["change"]), "")} for one in map(changed, unnoticed)]
    total = sum(map(Counter, modules.values()), Counter())
    args.output.write_text(json.dumps({
        "modules": modules, "score": score(total), "unnoticed": rows,
        "versions": {name: importlib.metadata.version(name) for name in ("mutmut", "pytest", "torch")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }, indent=1) + "\n")  # fmt: skip
    show(modules, total)
    open_ = [one for one in rows if not one["why"]]
    print(f"{len(rows)} changes were not noticed; {len(open_)} of them have no reason in {args.output}")
    raise SystemExit(bool(open_))


def read(mutants: Path) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Counts of each module, and the names of the mutants that no test noticed."""
    modules, unnoticed = {}, []
    for file in sorted((mutants / "src").rglob("*.py.meta")):
        codes = json.loads(file.read_text())["exit_code_by_key"]
        if not codes:
            continue
        kinds = {name: KINDS.get(code, "other") for name, code in codes.items()}
        name = file.relative_to(mutants / "src" / "hyperclone").as_posix().removesuffix(".meta")
        modules[name] = {"mutants": len(kinds), **Counter(kinds.values())}
        unnoticed += [name for name, kind in kinds.items() if kind in ("survived", "no test")]
    return modules, unnoticed


def changed(name: str) -> dict[str, Any]:
    """A mutant's function and its changed lines."""
    command = [sys.executable, "-m", "mutmut", "show", name]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return {"function": name.rpartition("__mutmut_")[0].removeprefix("hyperclone."), "change": "\n".join(lines)}


def score(counts: Counter[str] | dict[str, int]) -> float | None:
    """The share of mutants that were noticed, of those that ended in time."""
    ran = counts["mutants"] - counts.get("timeout", 0) - counts.get("not run", 0)
    return round(counts.get("noticed", 0) / ran, 4) if ran else None


def show(modules: dict[str, dict[str, int]], total: Counter[str]) -> None:
    """The table."""
    table = Table(Column("module", no_wrap=True), *COLUMNS, "score")
    for name, counts in [*modules.items(), ("all", total)]:
        found = score(counts)
        cells = [str(counts.get(column, 0)) for column in COLUMNS]
        table.add_row(name, *cells, "" if found is None else f"{found:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
