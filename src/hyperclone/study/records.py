"""What is known of everything that has finished in a study: one record for each run, tuning run and source.

A record is found by its key (run_keys.py). Its table (record_tables.py) keeps it once it has finished:

* A run that cannot be identified on this machine (its text or its model is missing) keeps its record and its status.
* A record that the study no longer asks for is kept as `former`.
* A record is never replaced by another. To repeat a run, set its status in runs.csv to `waiting`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperclone.study import run_keys
from hyperclone.study.layers import LayerAnatomy, LayerSymmetry, Spectrum
from hyperclone.study.speedup import Cost, Curve

FINISHED, FORMER = "finished", "former"
WAITING, FAILED, INTERRUPTED = "waiting", "failed", "interrupted"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run.

    Attributes:
        key: what it is (run_keys.py).
        arm, seed: as the study called it.
        source: key of the record of the source that it began from; empty for random weights and models made elsewhere.
        lr, optimizer: of its training.
        tokens, parameters, flops_per_token, seconds: what it took; seconds of steps.
        hardware, versions, date: where it ran, with what and until when, in words.
        curve: its evaluations.
        symmetry, anatomy, spectra: of a clone that was examined.
    """

    key: str
    arm: str
    seed: int
    source: str
    lr: float
    optimizer: str
    tokens: int
    parameters: int
    flops_per_token: int
    seconds: float
    hardware: str
    versions: str
    date: str
    curve: Curve
    symmetry: Sequence[LayerSymmetry] = ()
    anatomy: Sequence[LayerAnatomy] = ()
    spectra: Sequence[Spectrum] = ()


@dataclass(frozen=True, kw_only=True)
class TuningRun:
    """A short run that tried a learning rate, for one arm; the loss is infinite where training diverged.

    Attributes:
        key: what it is (run_keys.py); arms whose tuning is the same share it.
        arm: that it was made for; empty once the study no longer asks for it.
        lr, seed, loss: its learning rate, its seed, and its last validation loss.
    """

    key: str
    arm: str
    lr: float
    seed: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """A source: its size, and what its own training took, None where that is not known.

    The record of a source stays as it is when the source is trained again. If that ends at the same held-out loss, as
    rounded in tables, the model is taken for the one on record, and its cost is what the first training took. If it
    ends at another loss, which the arithmetic of another machine can cause, it is another model: it gets a record and
    a key of its own (`remade_key`). Every run names the record of the source that it began from and is charged with
    that one, so runs that had finished stay with the first, and later ones begin from the new model.

    Attributes:
        key: of the source's recipe (run_keys.py), or of a later training of it.
        name: as the study called it.
        parameters, tokens, flops, seconds: its size, and what its training took; seconds of steps.
        loss: its last held-out loss.
        hardware: where it was trained, in words.
    """

    key: str
    name: str
    parameters: int
    tokens: int | None = None
    flops: int | None = None
    seconds: float | None = None
    loss: float | None = None
    hardware: str = ""

    @property
    def cost(self) -> Cost:
        """What runs that begin from it are charged with."""
        return Cost(self.flops, self.seconds)

    def remade_key(self, loss: float | None) -> str:
        """The key of the record of a later training, which ended at a loss: its own if the loss is the same."""
        if loss is None or self.loss is None or loss == self.loss:
            return self.key
        return run_keys.of("remade", self.key, loss)


@dataclass
class Records:
    """Everything that has finished, by key."""

    runs: dict[str, RunRecord] = field(default_factory=dict)
    tuning_runs: dict[str, TuningRun] = field(default_factory=dict)
    sources: dict[str, SourceRecord] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A row of runs.csv: one run that the study asked for when the table was written, and what had become of it.

    Attributes:
        arm, seed: which run.
        status: FINISHED, WAITING, FAILED or INTERRUPTED.
        key: of its record; empty if it has not finished.
        error: why it failed; else empty.
    """

    arm: str
    seed: int
    status: str
    key: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the files of a study say, as they were read.

    Attributes:
        request: study.json (request.py); None before the study was first run.
        rows: of runs.csv that the study asked for, in its order.
        tuning_rows: of tuning.csv, in its order; one for each arm that a tuning run was made for.
        records: everything that has finished.
    """

    request: Mapping[str, Any] | None = None
    rows: Sequence[RunRow] = ()
    tuning_rows: Sequence[TuningRun] = ()
    records: Records = field(default_factory=Records)

    def finished(self) -> Iterator[tuple[RunRow, RunRecord]]:
        """The rows of finished runs, with their records."""
        return ((row, self.records.runs[row.key]) for row in self.rows if row.status == FINISHED)
