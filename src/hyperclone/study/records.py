"""What is known of everything that has finished in a study, and the tables that it is kept in.

runs.csv          one row for each run: what it is (arm, seed, key, learning rate), what it took, how it ended
evaluations.csv   one row for each evaluation of a finished run: held-out loss, accuracies of tasks
tuning.csv        one row for each short run that tried a learning rate
sources.csv       one row for each source: what its own training took
symmetry.csv      cosine between copies with every evaluation, by layer
anatomy.csv       the same, ranks and divergence before and after training, by layer
spectra.csv       singular values of two matrices of a middle layer, before and after training

Rows are found by the key of their run (run_keys.py). A finished run that the study no longer asks for keeps its rows,
with the status "former".
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from hyperclone.study import tables
from hyperclone.study.speedup import Curve

_T = TypeVar("_T")
FINISHED, FORMER = "finished", "former"
TASK = "task:"  # before the name of a task, as a column
POINTS = 101  # singular values kept of each matrix, at equal distances in rank
_SHOWN = ("q_proj", "up_proj", "down_proj", "query", "fc", "mlp")  # what a block reads into, and what it writes with


@dataclass(frozen=True, kw_only=True)
class LayerSymmetry:
    """Copies in one layer after some tokens: mean cosine over its matrices that read a grown axis."""

    tokens: int
    layer: int
    matrices: int
    cosine: float


@dataclass(frozen=True, kw_only=True)
class LayerAnatomy:
    """The anatomy of one layer after some tokens: means over its matrices, None where nothing was measured.

    Attributes:
        tokens, layer: where.
        matrices: with a cosine.
        cosine: between copies of the columns that read a grown axis.
        divergence: of the copies (anatomy/weights.py: 0 equal, 1 unrelated).
        effective_rank, source_effective_rank: of the matrices, and of those they were grown from.
    """

    tokens: int
    layer: int
    matrices: int
    cosine: float | None
    divergence: float | None
    effective_rank: float | None
    source_effective_rank: float | None


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of one matrix over the largest, at up to POINTS equal distances in rank."""

    tokens: int
    layer: int
    name: str
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run.

    Attributes:
        key: what it is (run_keys.py).
        arm, seed: as the study called it.
        lr, optimizer: of its training.
        tokens, parameters, flops_per_token, seconds: what it took; seconds of steps.
        hardware, versions, date: where it ran, with what and until when, in words.
        curve: its evaluations.
        symmetry, anatomy, spectra: of a clone that was examined.
    """

    key: str
    arm: str
    seed: int
    lr: float
    optimizer: str
    tokens: int
    parameters: int
    flops_per_token: float
    seconds: float
    hardware: str
    versions: str
    date: str
    curve: Curve
    symmetry: Sequence[LayerSymmetry] = ()
    anatomy: Sequence[LayerAnatomy] = ()
    spectra: Sequence[Spectrum] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A short run that tried a learning rate; the loss is infinite where training diverged."""

    key: str
    arm: str
    lr: float
    seed: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """A source: its size, and what its own training took, None where that is not known."""

    key: str
    name: str
    parameters: int
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    loss: float | None = None
    hardware: str = ""


@dataclass
class Records:
    """Everything that has finished, by key."""

    runs: dict[str, RunRecord] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)
    sources: dict[str, SourceRecord] = field(default_factory=dict)


RUN = ("arm", "seed", "key")  # columns that say which run a row is of
COSTS = ("lr", "tokens", "parameters", "flops_per_token", "seconds")
EVALUATION = ("step", "tokens", "seconds", "loss", "bits_per_byte")
SYMMETRY = tuple(column.name for column in fields(LayerSymmetry))
ANATOMY = tuple(column.name for column in fields(LayerAnatomy))
SPECTRUM = tuple(column.name for column in fields(Spectrum))
TRIAL = ("arm", "lr", "loss", "seed", "key")
SOURCE = tuple(column.name for column in fields(SourceRecord))


def load(output: Path) -> Records:
    """The records of a study; empty if it has none yet.

    Raises:
        StudyError: a table is corrupt or truncated.
    """
    curves = _by_key(
        tables.read(output / "evaluations.csv", texts=("key",), numbers=EVALUATION, prefix=TASK), _curve_columns
    )
    symmetry = _by_key(tables.read(output / "symmetry.csv", texts=("key",), numbers=SYMMETRY), _symmetry)
    measured = ("cosine", "divergence", "effective_rank", "source_effective_rank")
    anatomy = _by_key(
        tables.read(output / "anatomy.csv", texts=("key",), numbers=("tokens", "layer", "matrices"), optional=measured),
        _anatomy,
    )
    spectra = _by_key(
        tables.read(output / "spectra.csv", texts=("key", "name", "values"), numbers=("tokens", "layer")), _spectra
    )
    found = Records()
    texts = ("arm", "status", "key", "optimizer", "hardware", "versions", "date")
    for row in tables.read(output / "runs.csv", texts=texts, numbers=("seed",), optional=COSTS):
        key = row["key"]
        if row["status"] in (FINISHED, FORMER) and key in curves:
            found.runs[key] = RunRecord(
                key=key, arm=row["arm"], seed=int(row["seed"]), lr=row["lr"], optimizer=row["optimizer"],
                tokens=int(row["tokens"]), parameters=int(row["parameters"]), flops_per_token=row["flops_per_token"],
                seconds=row["seconds"], hardware=row["hardware"], versions=row["versions"], date=row["date"],
                curve=Curve(flops_per_token=row["flops_per_token"], **curves[key]),
                symmetry=symmetry.get(key, ()), anatomy=anatomy.get(key, ()), spectra=spectra.get(key, ()),
            )  # fmt: skip
    for trial in trials(output):
        found.trials.setdefault(trial.key, trial)
    found.sources = sources(output)
    return found


def standings(output: Path) -> list[dict[str, Any]]:
    """Rows of runs.csv that the study asks for, whatever became of them: arm, seed, status, key and error."""
    texts = ("arm", "status", "key", "error")
    return [
        {**{name: row[name] for name in texts}, "seed": int(row["seed"])}
        for row in tables.read(output / "runs.csv", texts=texts, numbers=("seed",))
        if row["status"] != FORMER
    ]


def trials(output: Path) -> list[Trial]:
    """Rows of tuning.csv; one for each arm that a short run was made for."""
    return [
        Trial(key=row["key"], arm=row["arm"], lr=row["lr"], seed=int(row["seed"]), loss=row["loss"])
        for row in tables.read(output / "tuning.csv", texts=("arm", "key"), numbers=("lr", "loss", "seed"))
    ]


def sources(output: Path) -> dict[str, SourceRecord]:
    """sources.csv alone, by key."""
    known = ("tokens", "flops", "seconds", "loss")
    rows = tables.read(
        output / "sources.csv", texts=("key", "name", "hardware"), numbers=("parameters",), optional=known
    )
    return {
        row["key"]: SourceRecord(
            key=row["key"], name=row["name"], parameters=int(row["parameters"]),
            tokens=None if row["tokens"] is None else int(row["tokens"]), flops=row["flops"], seconds=row["seconds"],
            loss=row["loss"], hardware=row["hardware"],
        )
        for row in rows
    }  # fmt: skip


def evaluation_rows(curve: Curve) -> list[dict[str, Any]]:
    """A curve as rows of evaluations.csv."""
    columns = (curve.step, curve.tokens, curve.seconds, curve.loss, curve.bits_per_byte)
    return [
        {**dict(zip(EVALUATION, values, strict=True)), **{f"{TASK}{name}": at[i] for name, at in curve.tasks.items()}}
        for i, values in enumerate(zip(*columns, strict=True))
    ]


def spectrum_row(spectrum: Spectrum) -> dict[str, Any]:
    """A spectrum as a row of spectra.csv."""
    row = {name: getattr(spectrum, name) for name in SPECTRUM}
    return {**row, "values": " ".join(f"{value:.4g}" for value in spectrum.values)}


def layer_means(tokens: int, tensors: Iterable[Mapping[str, Any]]) -> list[LayerAnatomy]:
    """The anatomy of each layer, from what `hyperclone anatomy --json` says of each matrix."""
    layers: dict[int, list[Mapping[str, Any]]] = {}
    for tensor in tensors:
        if tensor["layer"] is not None:
            layers.setdefault(tensor["layer"], []).append(tensor)

    def mean(matrices: Sequence[Mapping[str, Any]], part: str, name: str) -> float | None:
        known = [value for one in matrices if (value := (one[part] or {}).get(name)) is not None]
        return statistics.mean(known) if known else None

    return [
        LayerAnatomy(
            tokens=tokens, layer=layer, matrices=sum(_has_cosine(one) for one in matrices),
            cosine=mean(matrices, "read", "symmetry"), divergence=mean(matrices, "read", "divergence"),
            effective_rank=mean(matrices, "spectrum", "effective_rank"),
            source_effective_rank=mean(matrices, "source_spectrum", "effective_rank"),
        )
        for layer, matrices in sorted(layers.items())
    ]  # fmt: skip


def _has_cosine(tensor: Mapping[str, Any]) -> bool:
    return (tensor["read"] or {}).get("symmetry") is not None


def layer_symmetry(tokens: int, cosines: Mapping[str, float]) -> list[LayerSymmetry]:
    """Mean cosine of each layer, from cosines by matrix; matrices outside of layers are left out."""
    layers: dict[int, list[float]] = {}
    for name, cosine in cosines.items():
        if (layer := _layer(name)) is not None:
            layers.setdefault(layer, []).append(cosine)
    return [
        LayerSymmetry(tokens=tokens, layer=layer, matrices=len(values), cosine=statistics.mean(values))
        for layer, values in sorted(layers.items())
    ]


def middle_spectra(tokens: int, tensors: Iterable[Mapping[str, Any]]) -> list[Spectrum]:
    """Spectra of two matrices of a middle layer, from what `hyperclone anatomy --json` says of each matrix."""
    known = {one["name"]: one for one in tensors if one["layer"] is not None and one["spectrum"]}
    layers = sorted({one["layer"] for one in known.values()})
    if not layers:
        return []
    names = sorted(name for name, one in known.items() if one["layer"] == layers[len(layers) // 2])
    chosen = [name for kind in _SHOWN for name in names if kind in name][:2] or names[:2]
    return [
        Spectrum(
            tokens=tokens, layer=known[name]["layer"], name=name, values=_thinned(known[name]["spectrum"]["values"])
        )
        for name in chosen
    ]


def _thinned(values: Sequence[float]) -> list[float]:
    last = len(values) - 1
    if last < POINTS:
        return list(values)
    return [values[round(point * last / (POINTS - 1))] for point in range(POINTS)]


def _layer(name: str) -> int | None:
    """The layer in a tensor's name: its first number."""
    match = re.search(r"\.(\d+)\.", name)
    return None if match is None else int(match[1])


def _by_key(rows: Iterable[Mapping[str, Any]], build: Callable[[list[Mapping[str, Any]]], _T]) -> dict[str, _T]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["key"], []).append(row)
    return {key: build(own) for key, own in grouped.items()}


def _curve_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in EVALUATION}
    columns["step"] = [int(step) for step in columns["step"]]
    tasks = {name.removeprefix(TASK): [row[name] for row in rows] for name in rows[0] if name.startswith(TASK)}
    measured = {name: column for name, column in tasks.items() if any(value is not None for value in column)}
    return {**columns, "tasks": measured}


def _symmetry(rows: Sequence[Mapping[str, Any]]) -> list[LayerSymmetry]:
    return [
        LayerSymmetry(
            tokens=int(row["tokens"]), layer=int(row["layer"]), matrices=int(row["matrices"]), cosine=row["cosine"]
        )
        for row in rows
    ]


def _anatomy(rows: Sequence[Mapping[str, Any]]) -> list[LayerAnatomy]:
    return [
        LayerAnatomy(
            tokens=int(row["tokens"]), layer=int(row["layer"]), matrices=int(row["matrices"]), cosine=row["cosine"],
            divergence=row["divergence"], effective_rank=row["effective_rank"],
            source_effective_rank=row["source_effective_rank"],
        )
        for row in rows
    ]  # fmt: skip


def _spectra(rows: Sequence[Mapping[str, Any]]) -> list[Spectrum]:
    return [
        Spectrum(
            tokens=int(row["tokens"]), layer=int(row["layer"]), name=row["name"],
            values=[float(value) for value in row["values"].split()],
        )
        for row in rows
    ]  # fmt: skip
