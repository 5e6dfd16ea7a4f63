"""The directory of a study: where each thing lies, and what is known of a run that has ended.

    sources/NAME-KEY/         trained sources
    clones/KEY/               grown models
    shapes/KEY/               config and tokenizer of those whose weights are drawn anew
    tuning/ARM-lrRATE-KEY/    short runs that choose a learning rate
    runs/ARM-sSEED-KEY/       the runs
        metrics.jsonl         of `hyperclone train`
        run.json              how it ended; a run that has this file is finished
        anatomy.json          of a grown arm, before and after
    */NAME.log                beside each: its commands, and what they printed
    study.json, *.csv, spectra.json    results (results.py)

metrics.jsonl and run.json are all that reusing a run needs: weights may be deleted, and these two committed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RUN = "run.json"
ANATOMY = "anatomy.json"


def find(parent: Path, name: str, key: str) -> Path:
    """The directory of a run: one with this key if there is one, whatever its name; else `name-key`."""
    return next(iter(sorted(parent.glob(f"*-{key}"))), parent / f"{name}-{key}")


def ended(place: Path) -> dict[str, Any] | None:
    """run.json; None if the run is not finished."""
    try:
        told = json.loads((place / RUN).read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def write(file: Path, told: Any) -> None:
    """A JSON file that is there whole or not at all."""
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(told, indent=1) + "\n")
    os.replace(partial, file)
