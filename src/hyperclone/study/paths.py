"""The directory of a study: where each file lies.

    sources/NAME-KEY/         trained sources
    clones/KEY/               grown models
    shapes/KEY/               config and tokenizer of those that are randomly initialized
    tuning/ARM-lrRATE-KEY/    short runs that choose a learning rate
    runs/ARM-sSEED-KEY/       the runs, with metrics.jsonl of `hyperclone train` and anatomy.json
    */NAME.log                beside each: its commands, and what they printed
    study.json, *.csv         results (results.py)

The results are all that reusing a finished run needs: they are committed, everything else may be deleted.
"""

from __future__ import annotations

import os
from pathlib import Path

ANATOMY = "anatomy.json"


def runs_of(file: str | os.PathLike[str]) -> Path:
    """The directory of a study by default: beside the file, with `.runs`."""
    return Path(file).with_suffix(".runs")


def find(parent: Path, name: str, key: str) -> Path:
    """The directory of a run: one with this key if there is one, whatever its name; else `name-key`."""
    return next(iter(sorted(path for path in parent.glob(f"*-{key}") if path.is_dir())), parent / f"{name}-{key}")
