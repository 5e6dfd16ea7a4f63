"""Run a study of this directory: fetch its text, describe its sources, and hand it to `hyperclone study`.

    python studies/run.py recipes [--jobs 2] [--threads 1] [--dry-run]
    python studies/run.py recipes --source small    # train this source only, again if its weights are not kept here

Runs that have finished are found in `recipes.runs/runs.csv`; set their status to `waiting` to repeat them. Of `gpu` and
`longer` none are found: their text cannot be fetched any more. Further options are those of `hyperclone study`. Then

    hyperclone report studies/recipes.runs -o recipes.html
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import blank
import corpus

HERE = Path(__file__).parent
BLANK = re.compile(r".*/blank-(\d+)(?:x(\d+)x(\d+))?")  # hidden size, layers, head_dim
BLANKS = corpus.CACHE.parent / "studies"


def prepare(study: Path) -> None:
    """Fetch the text of a study, and describe what its sources are trained from."""
    text = study.read_text()
    for name in sorted(set(re.findall(r"/corpora/(\w+)/", text))):
        corpus.fetch(name)
    for source in tomllib.loads(text).get("sources", {}).values():
        if "study" in source:
            prepare(study.parent / source["study"])
            continue
        target = BLANKS / Path(source["model"]).name
        if (named := BLANK.fullmatch(source["model"])) and not target.is_dir():
            hidden, layers, head_dim = named.groups()
            blank.write(target, hidden=int(hidden), layers=int(layers or 4), head_dim=int(head_dim or 16))
    for kept in (HERE / f"{study.stem}.runs/sources").glob("*/config.json"):
        if not (tokenizer := kept.with_name("tokenizer.json")).exists():  # Seedling's, which the repository has once
            shutil.copy(blank.SEEDLING / tokenizer.name, tokenizer)


def main() -> None:
    """Prepare and run one study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", choices=sorted(file.stem for file in HERE.glob("*.toml")))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args, rest = parser.parse_known_args()
    study = HERE / f"{args.study}.toml"
    prepare(study)
    command = [sys.executable, "-m", "hyperclone", "study", os.path.relpath(study), "--jobs", str(args.jobs)]
    os.execv(sys.executable, [*command, "--threads", str(args.threads), *rest])  # signals are its


if __name__ == "__main__":
    main()
