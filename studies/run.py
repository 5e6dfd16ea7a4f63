"""Run a study of this directory from nothing: fetch its text, describe its sources, and hand it to `hyperclone study`.

    python studies/run.py recipes [--jobs 2] [--threads 1]

Runs that are committed (`recipes.runs/runs/*/run.json`) are reused; remove them to repeat everything. Then

    hyperclone report studies/recipes.runs -o recipes.html
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path

import blank
import corpus

HERE = Path(__file__).parent
BLANK = re.compile(r".*/blank-(\d+)(?:x(\d+)x(\d+))?")  # hidden size, layers, head_dim
BLANKS = corpus.CACHE.parent / "studies"


def main() -> None:
    """Prepare and run one study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", choices=sorted(file.stem for file in HERE.glob("*.toml")))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    study = HERE / f"{args.study}.toml"
    asked = study.read_text()
    for name in sorted(set(re.findall(r"/corpora/(\w+)/", asked))):
        corpus.fetch(name)
    for source in tomllib.loads(asked).get("sources", {}).values():
        target = BLANKS / Path(source["model"]).name
        if (named := BLANK.fullmatch(source["model"])) and not target.is_dir():
            hidden, layers, head_dim = named.groups()
            blank.write(target, hidden=int(hidden), layers=int(layers or 4), head_dim=int(head_dim or 16))
    command = [sys.executable, "-m", "hyperclone", "study", str(study)]
    os.execv(sys.executable, [*command, "--jobs", str(args.jobs), "--threads", str(args.threads)])  # signals are its


if __name__ == "__main__":
    main()
