"""Run a study of this directory from nothing: fetch its text, describe its sources, and hand it to `hyperclone study`.

    python studies/run.py recipes [--jobs 2] [--threads 1]

Runs that are committed (`recipes.runs/runs/*/run.json`) are reused; remove them to repeat everything. Then

    hyperclone report studies/recipes.runs -o recipes.html
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
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
    study = HERE / f"{args.study}.toml"
    for source in tomllib.loads(study.read_text()).get("sources", {}).values():
        if (named := re.fullmatch(r".*/blank-(\d+)", source["model"])) and not (
            target := BLANKS / Path(source["model"]).name
        ).is_dir():
            blank.write(target, hidden=int(named[1]), layers=4)
    command = ["study", str(study), "--jobs", str(args.jobs), "--threads", str(args.threads)]
    raise SystemExit(subprocess.call([str(Path(sys.executable).with_name("hyperclone")), *command]))


if __name__ == "__main__":
    main()
