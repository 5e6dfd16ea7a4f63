"""Every measurement of speed and memory, one after another, and one table of them: what `make bench` runs.

    python -m bench.all --work /scratch            # about 40 minutes on two idle cores, 20 GB in /scratch
    python -m bench.all --work /scratch --quick    # a few minutes, at sizes that only show that all of it runs

Each measurement is a script of bench/ with an output of its own. Full sizes go to bench/results, from which the tables
of docs/performance.md are written at once; quick ones to a directory of the scratch directory. Growths are of
TinyLlama's shape with random weights. A script that fails ends the run; `--only NAME ...` runs some of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import tables

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        shape: of the source (bench/grow.py).
        layers: of the large source, of the one for kinds of growth, and of the three for peak memory.
        rounds: of growths of the large source and trainings, of parts and kinds of growth, and of what takes seconds.
        pause: seconds before each command (bench/grow.py says why).
        model_layers: of the model whose tensors the optimizers step.
        steps: of a training.
        megabytes: of text to tokenize.
    """

    shape: str
    layers: tuple[int, int, tuple[int, ...]]
    rounds: tuple[int, int, int]
    pause: float
    model_layers: int
    steps: int
    megabytes: float


FULL = Size("1.1b", (22, 4, (4, 10, 22)), (3, 2, 5), 6.0, 30, 12, 16.0)
QUICK = Size("tiny", (2, 1, (1, 2, 4)), (1, 1, 1), 0.0, 1, 4, 0.5)


def measurements(size: Size, work: Path) -> dict[str, list[str]]:
    """The arguments of `python -m` for each measurement but its output, by the name of its results."""
    _, few, depths = size.layers
    rounds, kind_rounds, many = (["--rounds", str(count)] for count in size.rounds)
    source, scratch = str(work / "source"), ["--work", str(work / "scratch")]
    return {
        "grow-1b": ["bench.grow", "model", source, *scratch, *rounds],
        "parts": ["bench.parts", source, *scratch, *kind_rounds],
        "grow-kinds": ["bench.grow", "kinds", size.shape, "--layers", str(few), *scratch, *kind_rounds],
        "grow-threads": ["bench.grow", "threads", size.shape, "--layers", str(few), *scratch, *kind_rounds],
        "grow-memory": ["bench.grow", "shape", size.shape, "--layers", *map(str, depths), *scratch],
        "plan": ["bench.plan", *scratch, *many],
        "optimizer": ["bench.optimizer", "--layers", str(size.model_layers), *rounds],
        "train": ["bench.train", "--steps", str(size.steps), *rounds],
        "tokens": ["bench.tokens", "--megabytes", str(size.megabytes), *rounds],
    }  # fmt: skip


def run(size: Size, work: Path, results: Path, only: list[str]) -> None:
    """Make the source, and run the measurements."""
    environment = {
        **os.environ,
        "BENCH_PAUSE": str(size.pause),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    source = work / "source"
    results.mkdir(parents=True, exist_ok=True)
    (work / "scratch").mkdir(parents=True, exist_ok=True)

    def call(arguments: list[str]) -> None:
        ended = subprocess.run([sys.executable, "-m", *arguments], env=environment, stdout=subprocess.DEVNULL)
        if ended.returncode:
            sys.exit(f"python -m {' '.join(arguments)} failed")

    try:
        if not source.exists() and {"grow-1b", "parts"} & set(only):
            call(["bench.grow", "make", size.shape, str(size.layers[0]), str(source)])
        for name, arguments in measurements(size, work).items():
            if name in only:
                start = time.monotonic()
                call([*arguments, "-o", str(results / f"{name}.json")])
                print(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
            if name == "parts":  # the last that reads it; what follows needs the disk
                shutil.rmtree(source, ignore_errors=True)
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(work / "scratch", ignore_errors=True)


def main() -> None:
    """Measure, print the table, and write the page's."""
    names = list(measurements(FULL, Path()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="scratch directory on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="small sizes; results stay in the scratch directory")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    args = parser.parse_args()
    results = args.work / "quick" if args.quick else tables.RESULTS
    run(QUICK if args.quick else FULL, args.work, results, args.only)
    print(tables.overview(results))
    if not args.quick:
        tables.PAGE.write_text(tables.with_tables(tables.PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
