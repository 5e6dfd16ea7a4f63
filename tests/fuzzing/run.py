"""Fuzz one target, guided by coverage (atheris; Linux): python -m tests.fuzzing.run TARGET --runs 500000

Inputs that reach new code are kept in the corpus, tests/fuzzing/corpus/TARGET. An input that raises something else than
an error of ours, or takes too long or too much memory, ends the run and is written to tests/attacks/TARGET, where
tests/fuzzing/test_attacks.py runs it from then on.

    --runs N       inputs [500000]
    --report FILE  add a line to this JSON file: inputs, seconds, size of the corpus, branches that were reached
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
with atheris.instrument_imports(include=["hyperclone"]):
    from tests.fuzzing import targets

MEMORY_MB, SECONDS = 4096, 20


def main() -> None:
    """Parse the arguments and hand over to libFuzzer, which ends the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--runs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    corpus, attacks = HERE / "corpus" / args.target, HERE.parent / "attacks" / args.target
    for directory in (corpus, attacks):
        directory.mkdir(parents=True, exist_ok=True)
    seeds = targets.place() / "seeds"
    seeds.mkdir()
    for number, data in enumerate(targets.seeds(args.target)):
        (seeds / str(number)).write_bytes(data)
    options = [
        sys.argv[0], f"-runs={args.runs}", f"-seed={args.seed}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS}",
        f"-artifact_prefix={attacks}/", "-max_len=65536", "-print_final_stats=1", str(corpus),
        str(seeds),
    ]  # fmt: skip

    def one(data: bytes) -> None:
        targets.run(args.target, data)

    atheris.Setup(options, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
