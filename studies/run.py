"""Run a study of this directory from nothing: fetch its text, describe its sources, and hand it to `hyperclone study`.

    python studies/run.py recipes [--jobs 2] [--threads 1]

Runs that are committed (`recipes.runs/runs/*/run.json`) are reused; remove them to repeat everything. Then

    hyperclone report studies/recipes.runs -o recipes.html
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import blank
import corpus

HERE = Path(__file__).parent
BLANKS = corpus.CACHE.parent / "studies"


def main() -> None:
    """Prepare and run one study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", choices=sorted(file.stem for file in HERE.glob("*.toml")))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    corpus.fetch("mixed")
    if not (target := BLANKS / "blank-64").is_dir():
        blank.write(target, hidden=64, layers=4)
    command = ["study", str(HERE / f"{args.study}.toml"), "--jobs", str(args.jobs), "--threads", str(args.threads)]
    raise SystemExit(subprocess.call([str(Path(sys.executable).with_name("hyperclone")), *command]))


if __name__ == "__main__":
    main()
