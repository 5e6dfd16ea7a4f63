"""Random growths of random small models of every known architecture: what tests/proof/test_random_configs.py checks.

    python -m bench.random_growths --count 2000 --seed 1 -o bench/results/random-growths.json    (hours; it resumes)

Each case is a model made by unmodified transformers and a growth, both drawn by hypothesis; the grown model must have
the source's logits in float64 and collapse to its bytes. Written for each model type: cases that were kept, cases that
hyperclone refused with the reasons, and failures. A type whose cases are done is not run again. Exit code 1 if a case
failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis.errors import Unsatisfiable

from tests.helpers.random_configs import DRAWN, VARIED, Case, cases
from tests.proof.test_random_configs import hold


def main() -> None:
    """Run what is missing, and write after each model type."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="Cases that are kept, of all types together.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--types", nargs="+", default=sorted([*DRAWN, *VARIED]))
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/random-growths.json"))
    args = parser.parse_args()
    each = -(-args.count // len([*DRAWN, *VARIED]))
    result: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {"types": {}}
    for model_type in args.types:
        done = result["types"].get(model_type, {})
        if done.get("kept", 0) >= each and done.get("seed") == args.seed and not done.get("failed"):
            continue
        start = time.monotonic()
        row = run(model_type, each, args.seed)
        result["types"][model_type] = row
        rows = result["types"].values()
        result |= {
            "kept": sum(row["kept"] for row in rows), "failed": sum(len(row["failed"]) for row in rows),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "hypothesis")},
            "python": platform.python_version(), "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        args.output.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        refused = sum(row["refused"].values())
        print(f"{model_type:<22}{row['kept']:>4} kept {refused:>4} refused {len(row['failed']):>3} failed"
              f"{time.monotonic() - start:>8.0f} s", flush=True)  # fmt: skip
    print(f"{result['kept']} growths kept the function, {result['failed']} did not")
    raise SystemExit(bool(result["failed"]))


def run(model_type: str, count: int, number: int) -> dict[str, Any]:
    """Cases of one type until so many were kept; a failure is written down and does not end the run."""
    kept, refused, failed = 0, Counter[str](), []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(cases(model_type))
    def each(case: Case) -> None:
        nonlocal kept
        with tempfile.TemporaryDirectory() as scratch:
            try:
                reason = hold(case, Path(scratch))
            except AssertionError as error:
                failed.append({"case": repr(case), "error": str(error).splitlines()[0][:300]})
                return
        if reason is not None:
            refused[reason] += 1
            reject()
        kept += 1

    with suppress(Unsatisfiable):  # all were refused, which the table says
        each()
    return {"kept": kept, "refused": dict(refused), "failed": failed, "seed": number}


if __name__ == "__main__":
    main()
