"""A study that was never run, and changes of it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperclone.report import load
from hyperclone.report.load import Results
from hyperclone.study import record_tables
from hyperclone.study.speedup import Speedup

ARMS: dict[str, dict[str, Any]] = {
    "random": {"kind": "random", "label": "random weights", "group": None},
    "clone": {"kind": "clone", "label": "2x, <b>the law</b>", "group": ["noise", "source quality"]},
    "plain": {"kind": "clone", "label": "2x, no noise", "group": ["noise", "source quality"]},
    "source": {"kind": "source", "label": "the source", "group": None},
}
BAD = {"kind": "random", "label": "one that fails", "group": None}
STEPS = (0, 1, 2, 4, 10, 20, 30, 40)
FIGURES = [
    "answer", "worth", "loss-tokens", "loss-tokens-log", "loss-flops", "loss-flops-log", "loss-seconds",
    "loss-seconds-log", "early", "speedup", "accuracy", "tasks", "group-0", "source-quality", "divergence", "symmetry",
    "spectra", "tuning",
]  # fmt: skip


def study(directory: Path, *, seeds: int = 3) -> Path:
    """The directory of a study that was never run: every arm finished but `bad`, which failed."""
    directory.mkdir(exist_ok=True)
    every = range(1, seeds + 1)
    content: dict[str, Any] = {
        "name": "made <up>", "note": "For tests.", "hyperclone": "0.1.0", "control": "random", "headline": None,
        "seeds": [*every], "train": {"tokens": "40k", "lr": 1e-3}, "tune": None,
        "sources": {name: {"key": f"source-{name}", "train": None} for name in ("a", "b")},
        "arms": {name: {**arm, "source": "b" if name == "plain" else "a", "growth": {"width": 2}, "moments": None,
                        "train": {}, "tuned": {"lr": 2e-3}, "like": None if name == "clone" else "clone"}
                 for name, arm in {**ARMS, "bad": BAD}.items()},
    }  # fmt: skip
    (directory / "study.json").write_text(json.dumps({**content, "rows": {}}))
    write(
        directory / "sources.csv",
        ["key", "name", "parameters", "tokens", "flops", "seconds", "loss", "hardware"],
        [[f"source-{name}", name, 500_000 * k, 1_000_000 * k, 10**12, 60.0, 3.5, ""] for k, name in enumerate("ab", 1)],
    )
    fall = {"random": (7.0, 3.4), "clone": (3.6, 3.1), "plain": (3.6, 3.3), "source": (3.6, 3.35)}

    def loss(arm: str, seed: int, step: int) -> float:
        start, end = fall[arm]
        return end + (start - end) * math.exp(-step / 10) + 0.01 * seed * (step > 0)

    machine = ["one, 2 cores, 1 thread a run", "torch 2.13.0", "2026-11-25", ""]
    size = [40_000, 1_000_000, 6_000_000, 240_000_000_000, 40]
    source = {"random": "", "clone": "source-a", "plain": "source-b", "source": "source-a"}
    write(
        directory / "runs.csv",
        [*record_tables.RUNS],
        [[arm, seed, "finished", f"{arm}-{seed}", source[arm], 0.002, "adamw", *size, loss(arm, seed, 0),
          loss(arm, seed, 40), *machine] for arm in ARMS for seed in every]
        + [["bad", seed, "failed", *[""] * 14, "exploded <script>alert(1)</script>"] for seed in every],
    )  # fmt: skip
    columns = ["step", "tokens", "seconds", "loss", "bits_per_byte", "task:sciq", "task:piqa"]
    rows = [
        [arm, seed, f"{arm}-{seed}", step, step * 1000, step, loss(arm, seed, step), 1.5, 0.3, 0.5]
        for arm in fall for seed in every for step in STEPS
    ]  # fmt: skip
    write(directory / "evaluations.csv", [*WHICH, *columns], rows)
    write(
        directory / "tuning.csv",
        ["arm", "lr", "loss", "seed", "key"],
        [["clone", lr, loss, 0, f"tuning-{lr}"] for lr, loss in ((0.001, 3.5), (0.002, 3.4), (0.004, "inf"))],
    )
    which = ["clone", 1, "clone-1"]
    write(
        directory / "anatomy.csv",
        [*WHICH, "tokens", "layer", "matrices", "cosine", "divergence", "effective_rank", "source_effective_rank"],
        [[*which, t, i, 7, 0.8 - t / 1e5, 0.1, 9, 8] for t in (0, 40_000) for i in range(2)],
    )
    write(
        directory / "symmetry.csv", [*WHICH, "tokens", "layer", "matrices", "cosine"],
        [[*which, t, i, 7, 0.8 - i * t / 1e5] for t in (0, 20_000, 40_000) for i in range(2)],
    )  # fmt: skip
    write(
        directory / "spectra.csv",
        [*WHICH, "tokens", "layer", "name", "values"],
        [[*which, t, 1, "l.1.up_proj", "1 0.5 0.2"] for t in (0, 40_000)],
    )
    return counted(directory)


WHICH = ("arm", "seed", "key")


def counted(directory: Path) -> Path:
    """Write into study.json how many rows each table has."""
    file = directory / "study.json"
    counts = {table.name: len(table.read_text().splitlines()) - 1 for table in directory.glob("*.csv")}
    file.write_text(json.dumps({**json.loads(file.read_text()), "rows": counts}))
    return directory


def write(file: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def edited(file: Path, column: str, change: Callable[[dict[str, str]], object]) -> None:
    """Change a column of a table."""
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    write(file, list(rows[0]), [[*{**row, column: change(row)}.values()] for row in rows])


def compared(value: float | None, **other: float | None) -> Speedup:
    """An arm that is so many times as fast as the control."""
    charged = None if value is None else 0.5 * min(value, 2.0)
    figures: dict[str, Any] = {
        "target": 3.4, "tokens": None, "flops": None, "seconds": None, "speedup_tokens": value, "speedup_flops": value,
        "speedup_seconds": value, "charged_flops": charged, "charged_seconds": charged,
        "difference_at_equal_tokens": -0.1, "difference_to_target": -0.1, "token_efficiency": 1.5,
        "charged_flop_efficiency": 0.5, "forgetting": 0.02, "start": 3.6, "final": 3.1,
    }  # fmt: skip
    return Speedup(**{**figures, **other})


def results(runs: Path, speedups: dict[str, list[float | None]] | None = None, **other: float | None) -> Results:
    """The results of a study, with speed-ups that suit the test."""
    read = load.read(runs)
    shown = speedups or {"random": [1.0] * 3, "clone": [4.0, 5.0, 6.0], "plain": [2.0, None, 2.2]}
    return replace(read, speedups={arm: [compared(one, **other) for one in values] for arm, values in shown.items()})
