"""The results of a study, read from its directory (study/results.py says what is in each file)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run: (evaluations,) each; `tasks` by name, None where a task was not run."""

    seed: int
    step: tuple[float, ...]
    tokens: tuple[float, ...]
    flops: tuple[float, ...]
    seconds: tuple[float, ...]
    loss: tuple[float, ...]
    bits_per_byte: tuple[float, ...]
    tasks: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Results:
    """Everything that a report is made from.

    Attributes:
        study: study.json.
        curves: finished runs by arm.
        speedups: rows of speedup.csv by arm; None where a field is empty.
        tuning: (learning rate, loss) by arm.
        anatomy: rows of anatomy.csv.
        spectra: spectra.json.
    """

    study: Mapping[str, Any]
    curves: Mapping[str, Sequence[Curve]]
    speedups: Mapping[str, Sequence[Mapping[str, float | None]]]
    tuning: Mapping[str, Sequence[tuple[float, float]]]
    anatomy: Sequence[Mapping[str, Any]]
    spectra: Sequence[Mapping[str, Any]]

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        """What each arm is, in the study's order."""
        found: Mapping[str, Mapping[str, Any]] = self.study["arms"]
        return found

    @property
    def control(self) -> str | None:
        """The arm that speed-ups are measured against."""
        found: str | None = self.study.get("reference")
        return found

    @property
    def headline(self) -> str | None:
        """The arm that the report opens with: the study's choice, or its first clone."""
        clones = [name for name, arm in self.arms.items() if arm["kind"] == "clone"]
        chosen: str | None = self.study.get("headline") or next(iter(clones), None)
        return chosen


def read(runs: Path) -> Results:
    """Results of a study, also of one that is still running.

    Raises:
        StudyError: this is no directory of a study, or a file in it is torn.
    """
    if not (runs / "study.json").is_file():
        raise StudyError("no results of a study are here", file=runs, expected="study.json",
                         cure="hyperclone study STUDY.toml makes them, beside the file as STUDY.runs")  # fmt: skip
    study = _json(runs / "study.json")
    if not isinstance(study, dict) or not isinstance(study.get("arms"), dict):
        raise StudyError("this is not a study's", file=runs / "study.json", field="arms")
    curves: dict[str, list[Curve]] = {}
    rows = _rows(runs / "results.csv")
    for arm in study["arms"]:
        for seed in sorted({int(row["seed"]) for row in rows if row["arm"] == arm}):
            own = [row for row in rows if row["arm"] == arm and int(row["seed"]) == seed]
            columns = {name: tuple(float(row[name]) for row in own)
                       for name in ("step", "tokens", "flops", "seconds", "loss", "bits_per_byte")}  # fmt: skip
            tasks = {name.removeprefix("task:"): tuple(_number(row[name]) for row in own)
                     for name in own[0] if name.startswith("task:")}  # fmt: skip
            curves.setdefault(arm, []).append(Curve(seed=seed, tasks=tasks, **columns))
    speedups: dict[str, list[dict[str, float | None]]] = {}
    for row in _rows(runs / "speedup.csv"):
        told = {name: _number(value) for name, value in row.items() if name != "arm"}
        speedups.setdefault(row["arm"], []).append(told)
    tuning: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(runs / "tuning.csv"):
        tuning.setdefault(row["arm"], []).append((float(row["lr"]), float(row["loss"])))
    spectra = _json(runs / "spectra.json") if (runs / "spectra.json").is_file() else []
    return Results(study, curves, speedups, tuning, _rows(runs / "anatomy.csv"), spectra)


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    try:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise StudyError("this table is torn", file=file, found=error) from None
    if any(None in row or None in row.values() for row in rows):
        raise StudyError("this table is torn", file=file, found="rows of different lengths")
    return rows


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise StudyError("this file is torn", file=file, found=error) from None


def _number(text: str) -> float | None:
    return float(text) if text else None
