"""The tables that records are kept in: read, and checked against each other.

runs.csv          one row for each run: what it is (arm, seed, key, source, learning rate), what it took, how it ended
evaluations.csv   one row for each evaluation of a finished run: held-out loss, accuracies of tasks
tuning.csv        one row for each arm and learning rate that was tried on a short horizon
sources.csv       one row for each training of a source: what it took
symmetry.csv      cosine between copies with every evaluation, by layer
anatomy.csv       the same, ranks and divergence before and after training, by layer
spectra.csv       singular values of two matrices of a middle layer, before and after training

Rows belong to the run whose key they have. study.json says how many rows each table has and which runs it asks for, and
a row of runs.csv repeats the ends of its curve, so a table that was cut, or a row that is missing or there twice, is
found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from hyperclone.errors import StudyError
from hyperclone.study import request, tables
from hyperclone.study.layers import LayerAnatomy, LayerSymmetry, Spectrum
from hyperclone.study.records import (
    FAILED,
    FINISHED,
    FORMER,
    INTERRUPTED,
    WAITING,
    Recorded,
    Records,
    RunRecord,
    RunRow,
    SourceRecord,
    TuningRun,
)
from hyperclone.study.speedup import Curve
from hyperclone.study.tables import NAME, NUMBER, NUMBERS, POSITIVE, TEXT, WHOLE, Column, corrupt, one_of, optional

_T = TypeVar("_T", LayerSymmetry, LayerAnatomy, Spectrum)
_Rows = Sequence[Mapping[str, Any]]
_ATTEMPTS = 5  # at reading tables that a study is writing just then
TASK = "task:"  # before the name of a task, as a column
SMALL = ("small_tokens", "small_flops_per_token")  # columns of a study with runs that were grown on the way
REPEAT = f"{tables.RESTORE}; or set the run's status in runs.csv to {WAITING}, and it is trained again"

_WHICH: Mapping[str, Column] = {"arm": NAME, "seed": WHOLE, "key": NAME}
RUNS: Mapping[str, Column] = {
    "arm": NAME, "seed": WHOLE, "status": one_of(FINISHED, FORMER, WAITING, FAILED, INTERRUPTED), "key": TEXT,
    "source": TEXT, "lr": optional(POSITIVE), "optimizer": TEXT,
    **dict.fromkeys(("tokens", "parameters", "flops_per_token", "flops"), optional(WHOLE)),
    **dict.fromkeys(("seconds", "start_loss", "final_loss"), optional(NUMBER)),
    "hardware": TEXT, "versions": TEXT, "date": TEXT, "error": TEXT,
}  # fmt: skip
_OF_FINISHED = ("lr", "tokens", "parameters", "flops_per_token", "flops", "seconds", "start_loss", "final_loss")
EVALUATIONS: Mapping[str, Column] = {
    **_WHICH, "step": WHOLE, "tokens": WHOLE, "seconds": NUMBER, "loss": NUMBER, "bits_per_byte": NUMBER,
}  # fmt: skip
TUNING: Mapping[str, Column] = {
    "arm": TEXT, "lr": POSITIVE, "loss": tables.NUMBER_OR_INFINITY, "seed": WHOLE, "key": NAME
}  # fmt: skip
SOURCES: Mapping[str, Column] = {
    "key": NAME, "name": NAME, "parameters": WHOLE, "tokens": optional(WHOLE), "flops": optional(WHOLE),
    "seconds": optional(NUMBER), "loss": optional(NUMBER), "hardware": TEXT,
}  # fmt: skip
_LAYER: Mapping[str, Column] = {**_WHICH, "tokens": WHOLE, "layer": WHOLE}
SYMMETRY: Mapping[str, Column] = {**_LAYER, "matrices": WHOLE, "cosine": NUMBER}
ANATOMY: Mapping[str, Column] = {
    **_LAYER, "matrices": WHOLE,
    **dict.fromkeys(("cosine", "divergence", "effective_rank", "source_effective_rank"), optional(NUMBER)),
}  # fmt: skip
SPECTRA: Mapping[str, Column] = {**_LAYER, "name": NAME, "values": NUMBERS}
TABLES: Mapping[str, Mapping[str, Column]] = {
    "evaluations.csv": EVALUATIONS, "symmetry.csv": SYMMETRY, "anatomy.csv": ANATOMY, "spectra.csv": SPECTRA,
    "tuning.csv": TUNING, "sources.csv": SOURCES, "runs.csv": RUNS,
}  # fmt: skip


def load(directory: Path) -> Recorded:
    """What the files of a study say.

    Raises:
        StudyError: a file is corrupt or truncated, or does not agree with the others.
    """
    for attempt in range(_ATTEMPTS):
        before = _stamps(directory)
        try:
            recorded = _Loader(directory).recorded()
        except StudyError:
            if _stamps(directory) == before or attempt == _ATTEMPTS - 1:
                raise
        else:
            if _stamps(directory) == before:
                break
    return recorded


def _stamps(directory: Path) -> list[tuple[str, int, int]]:
    """What changes when any of the files is replaced."""
    stats = [(name, directory / name) for name in (*TABLES, request.STUDY)]
    return [(name, (stat := file.stat()).st_mtime_ns, stat.st_ino) for name, file in stats if os.path.exists(file)]


def sources(directory: Path) -> dict[str, SourceRecord]:
    """sources.csv alone, by key.

    Raises:
        StudyError: it is corrupt or truncated.
    """
    file = directory / "sources.csv"
    return _sources(file, tables.read(file, SOURCES))


def _sources(file: Path, rows: _Rows) -> dict[str, SourceRecord]:
    """Rows of sources.csv by key, each there once."""
    found: dict[str, SourceRecord] = {}
    for row in rows:
        if row["key"] in found:
            raise corrupt(file, field="key", found=f"{row['key']} twice", expected="it once")
        found[row["key"]] = SourceRecord(**row)
    return found


class _Loader:
    """Reads the files of one directory."""

    def __init__(self, directory: Path) -> None:
        """Read every table, each by itself."""
        self._directory = directory
        self._request = request.read(directory)
        self._tables = {
            name: tables.read(
                directory / name, columns,
                further=_FURTHER.get(name),
            )
            for name, columns in TABLES.items()
        }  # fmt: skip
        self._sources = _sources(directory / "sources.csv", self._tables["sources.csv"])

    def recorded(self) -> Recorded:
        """What they say together."""
        self._check_request()
        self._check_keys()
        grouped = {name: _by_key(self._tables[name]) for name in _OF_RUNS}
        runs: dict[str, RunRecord] = {}
        rows: list[RunRow] = []
        for row in self._tables["runs.csv"]:
            if row["status"] in (FINISHED, FORMER):
                record = self._run(row, {name: grouped[name].get(row["key"], []) for name in _OF_RUNS})
                self._add(runs, record, row)
            if row["status"] != FORMER:
                rows.append(RunRow(**{field.name: row[field.name] for field in fields(RunRow)}))
        tuning_rows = [TuningRun(**row) for row in self._tables["tuning.csv"]]
        self._check_tuning(tuning_rows)
        tuning_runs: dict[str, TuningRun] = {}
        for tuning_run in tuning_rows:
            tuning_runs.setdefault(tuning_run.key, tuning_run)
        return Recorded(
            request=self._request, rows=rows, tuning_rows=tuning_rows,
            records=Records(runs=runs, tuning_runs=tuning_runs, sources=self._sources),
        )  # fmt: skip

    def _wrong(self, name: str, **details: Any) -> StudyError:
        return corrupt(self._directory / name, **details)

    def _check_request(self) -> None:
        """The runs that study.json asks for, and the number of rows of each table."""
        if self._request is None:
            if tables_there := [name for name in TABLES if self._tables[name] and name != "sources.csv"]:
                raise self._wrong(request.STUDY, found="no such file",
                                  expected=f"one beside {', '.join(tables_there)}")  # fmt: skip
            return
        for name in TABLES:
            count, expected = len(self._tables[name]), self._request["rows"].get(name, 0)
            if count != expected:
                raise self._wrong(name, found=f"{count} rows", expected=f"{expected}, by {request.STUDY}")
        asked = {(arm, seed) for arm in self._request["arms"] for seed in self._request["seeds"]}
        there = [(row["arm"], row["seed"]) for row in self._tables["runs.csv"] if row["status"] != FORMER]
        for arm, seed in sorted({*asked} ^ {*there}):
            raise self._wrong("runs.csv", field=f"arm {arm}, seed {seed}",
                              found="no row" if (arm, seed) in asked else "a row",
                              expected=f"a row for each arm and seed of {request.STUDY}")  # fmt: skip
        if len(there) > len(asked):
            raise self._wrong("runs.csv", found="two rows of one arm and seed", expected="one")

    def _check_keys(self) -> None:
        """Rows of every table are of runs in runs.csv; sources that are named are in sources.csv."""
        known = {row["key"] for row in self._tables["runs.csv"]}
        for name in _OF_RUNS:
            for row in self._tables[name]:
                if row["key"] not in known:
                    raise self._wrong(name, field="key", found=row["key"], expected="the key of a row of runs.csv",
                                      cure="restore this file and runs.csv, from git or from a backup")  # fmt: skip
        named = {row["source"] for row in self._tables["runs.csv"]} - {""}
        named |= {source["key"] for source in (self._request or {"sources": {}})["sources"].values()} - {None}
        for key in sorted(named - {*self._sources}):
            raise self._wrong("sources.csv", field="key", found="no row", expected=f"one with the key {key}")

    def _run(self, row: Mapping[str, Any], rows: Mapping[str, _Rows]) -> RunRecord:
        """The record of a finished run."""
        which = f"{row['arm']}, seed {row['seed']}"
        for name in _OF_FINISHED:
            if row[name] is None:
                raise self._wrong(
                    "runs.csv",
                    field=f"{name} of {which}",
                    found="nothing",
                    cure=REPEAT,
                    expected=f"{RUNS[name].expected.removesuffix(', or nothing')}, as the run has finished",
                )
        kind = None if self._request is None or row["status"] == FORMER else self._request["arms"][row["arm"]]["kind"]
        if not row["key"] or not row["optimizer"] or (kind in ("clone", "source")) > bool(row["source"]):
            raise self._wrong(
                "runs.csv",
                field=which,
                found="an empty key, optimizer or source",
                cure=REPEAT,
                expected="none of them empty, as the run has finished",
            )
        tokens, per_token = (row.get(name) or 0 for name in SMALL)
        if row["flops"] != tokens * per_token + (row["tokens"] - tokens) * row["flops_per_token"]:
            raise self._wrong(
                "runs.csv",
                field=f"flops of {which}",
                found=row["flops"],
                expected=f"{row['tokens'] - tokens} tokens x {row['flops_per_token']}"
                + (f" + {tokens} x {per_token}" if tokens else ""),
                cure=REPEAT,
            )
        curve = self._curve(which, row, rows["evaluations.csv"])
        return RunRecord(
            **{name: row[name] for name in _AS_THEY_ARE}, curve=curve,
            symmetry=self._layers("symmetry.csv", which, rows, LayerSymmetry, curve),
            anatomy=self._layers("anatomy.csv", which, rows, LayerAnatomy, curve),
            spectra=self._layers("spectra.csv", which, rows, Spectrum, curve),
        )  # fmt: skip

    def _curve(self, which: str, row: Mapping[str, Any], rows: _Rows) -> Curve:
        """The curve of a finished run, which begins at 0 and ends as its row in runs.csv says."""

        def wrong(field: str, found: object, expected: object) -> StudyError:
            return self._wrong("evaluations.csv", field=f"{field} of {which}", found=found, expected=expected,
                               cure=REPEAT)  # fmt: skip

        if not rows:
            raise wrong("evaluations", "none", f"its curve, to {row['tokens']} tokens")
        first, last = rows[0], rows[-1]
        ends = (
            ("first tokens", first["tokens"], 0), ("last tokens", last["tokens"], row["tokens"]),
            ("last seconds", last["seconds"], row["seconds"]), ("first loss", first["loss"], row["start_loss"]),
            ("last loss", last["loss"], row["final_loss"]),
        )  # fmt: skip
        for field, found, expected in ends:
            if found != expected:
                raise wrong(field, found, f"{expected}, as in runs.csv" if expected else expected)
        for before, after in pairwise(rows):
            if not (before["step"] < after["step"] and before["tokens"] < after["tokens"]):
                raise wrong("step", after["step"], f"more steps and tokens than {before['step']}, which is before")
            if before["seconds"] > after["seconds"]:
                raise wrong("seconds", after["seconds"], f"no less than {before['seconds']}, which are before")
        for one in rows:
            if one["tokens"] * last["step"] != one["step"] * last["tokens"]:
                raise wrong(f"tokens after step {one['step']}", one["tokens"], "the same number for each step")

        def column(name: str) -> list[Any]:
            return [one[name] for one in rows]

        tasks = {name.removeprefix(TASK): column(name) for name in first if name.startswith(TASK)}
        return Curve(
            flops_per_token=row["flops_per_token"],
            small_tokens=row.get(SMALL[0]) or 0,
            small_flops_per_token=row.get(SMALL[1]) or 0,
            tasks={name: values for name, values in tasks.items() if any(value is not None for value in values)},
            step=column("step"), tokens=column("tokens"), seconds=column("seconds"), loss=column("loss"),
            bits_per_byte=column("bits_per_byte"),
        )  # fmt: skip

    def _layers(self, name: str, which: str, rows: Mapping[str, _Rows], kind: type[_T], curve: Curve) -> list[_T]:
        """Rows of one run about its layers."""
        self._check_layers(name, which, rows[name], None if kind is LayerSymmetry else [0, round(curve.tokens[-1])])
        return [kind(**{field.name: row[field.name] for field in fields(kind)}) for row in rows[name]]

    def _check_layers(self, name: str, which: str, rows: _Rows, measured_at: list[int] | None) -> None:
        """The same matrices or layers whenever a run was measured."""
        measured: dict[int, list[tuple[int, str | None, int]]] = {}
        for row in rows:
            measured.setdefault(row["tokens"], []).append((row["layer"], row.get("name"), len(row.get("values", ()))))
        if measured and measured_at is not None and [*measured] != measured_at:
            raise self._wrong(name, field=f"tokens of {which}", found=", ".join(map(str, measured)),
                              expected=", ".join(map(str, measured_at)))  # fmt: skip
        first = next(iter(measured.values()), [])
        for tokens, matrices in measured.items():
            if matrices != first or len({*matrices}) < len(matrices):
                layers = ", ".join(str(layer) for layer, _, _ in matrices)
                raise self._wrong(name, field=f"layers of {which}, after {tokens} tokens", found=layers,
                                  expected="each once, the same as before training")  # fmt: skip

    def _add(self, runs: dict[str, RunRecord], record: RunRecord, row: Mapping[str, Any]) -> None:
        """Add a record; arms that are the same share it, so their rows must agree."""
        before = runs.setdefault(record.key, record)
        for name in _AS_THEY_ARE:
            if name not in ("arm", "seed") and getattr(before, name) != getattr(record, name):
                raise self._wrong("runs.csv", field=f"{name} of {row['arm']}, seed {row['seed']}", cure=REPEAT,
                                  found=getattr(record, name),
                                  expected=f"{getattr(before, name)}, as in another row with its key")  # fmt: skip

    def _check_tuning(self, rows: Sequence[TuningRun]) -> None:
        """An arm has a rate once, a key one loss, and a chosen rate the lowest loss of its arm's."""
        file = "tuning.csv"
        by_key: dict[str, TuningRun] = {}
        by_arm: dict[str, dict[float, float]] = {}
        for row in rows:
            first = by_key.setdefault(row.key, row)
            if (first.lr, first.loss, first.seed) != (row.lr, row.loss, row.seed):
                raise self._wrong(file, field=f"key {row.key}", found="rows that differ", expected="one loss")
            losses = by_arm.setdefault(row.arm, {})
            if row.arm and row.lr in losses:
                raise self._wrong(file, field=f"arm {row.arm}", found=f"the rate {row.lr:g} twice", expected="it once")
            losses[row.lr] = row.loss
        for arm, about in (self._request or {"arms": {}})["arms"].items():
            if about["tuned"] is None or about["like"] is not None:
                continue
            losses, chosen = by_arm.get(arm, {}), tables.rounded(float(about["tuned"]["lr"]))
            if losses.get(chosen) != min(losses.values(), default=None):
                raise self._wrong(
                    file,
                    field=f"arm {arm}",
                    expected=f"the lowest loss at {chosen:g}, the chosen rate",
                    found=", ".join(f"{lr:g}: {loss:g}" for lr, loss in losses.items()) or "no row",
                )


_FURTHER = {"evaluations.csv": (TASK, optional(NUMBER)), "runs.csv": ("small_", optional(WHOLE))}
_OF_RUNS = ("evaluations.csv", "symmetry.csv", "anatomy.csv", "spectra.csv")
_AS_THEY_ARE = ("key", "arm", "seed", "source", "lr", "optimizer", "tokens", "parameters", "flops_per_token", "seconds",
                "hardware", "versions", "date")  # fmt: skip


def _by_key(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["key"], []).append(row)
    return grouped
