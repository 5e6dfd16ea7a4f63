"""How a study stands, and the events of its running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperclone.study.config import Arm, SourceModel, Study
from hyperclone.study.records import WAITING, Recorded, Records, RunRecord, TuningRun
from hyperclone.study.speedup import Speedup


@dataclass(eq=False)
class Run:
    """One arm with one seed; equal to itself only.

    Attributes:
        arm, seed: which.
        status: WAITING, FINISHED, FAILED or INTERRUPTED (records.py).
        path: its directory, once it is known; it may have been deleted since the run finished.
        record: its results, once it is finished.
        kept: its results on record, while nothing on this machine says that it is another run: it is still to be
            looked up, or it cannot be identified, or what needs it failed before.
        identified: whether text and model are on this machine, so that it is known which run it is.
        error: why it failed.
    """

    arm: Arm
    seed: int
    status: str = WAITING
    path: Path | None = None
    record: RunRecord | None = None
    kept: RunRecord | None = None
    identified: bool = False
    error: str | None = None

    @property
    def result(self) -> RunRecord | None:
        """What its tables say: of this run, or what is on record."""
        return self.record or self.kept


@dataclass(frozen=True)
class Compared:
    """What is on record was compared with the study as it is on this machine, before anything runs.

    Attributes:
        reused: finished runs that are found again.
        kept: finished runs that cannot be identified here and stay as they are recorded.
        former: finished runs of another text, model or setting, which are kept as former ones.
        missing: runs that are to be trained.
    """

    reused: int
    kept: int
    former: int
    missing: int


@dataclass
class Progress:
    """How a study stands.

    Attributes:
        study: the request.
        output: its directory.
        runs: every arm with every seed.
        recorded: what its files said when it began.
        sources: keys of the sources that are known, by name.
        kept_sources: keys on record of the sources that cannot be identified on this machine, by name.
        compared: of what is on record, how much is found again.
        tuning: tuning runs by arm and learning rate: tried now, or on record unless they are known to be others.
        chosen: the learning rate of each tuned arm, likewise.
        speedups: of the finished runs.
    """

    study: Study
    output: Path
    runs: list[Run]
    recorded: Recorded = field(default_factory=Recorded)
    sources: dict[str, str] = field(default_factory=dict)
    kept_sources: dict[str, str] = field(default_factory=dict)
    compared: Compared = field(default_factory=lambda: Compared(0, 0, 0, 0))
    tuning: dict[str, dict[float, TuningRun]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    speedups: list[tuple[Run, Speedup]] = field(default_factory=list)

    @property
    def records(self) -> Records:
        """Everything that has finished, in this study or in an earlier version of it."""
        return self.recorded.records

    @property
    def identified(self) -> bool:
        """Whether any of its runs is."""
        return any(run.identified for run in self.runs)


@dataclass(frozen=True)
class Began:
    """A training has begun: `path` is its directory, `run` the run; None for sources and tuning runs."""

    what: str
    path: Path
    run: Run | None = None


@dataclass(frozen=True)
class RateChosen:
    """A learning rate was chosen among those tried: (learning rate, validation loss)."""

    arm: Arm
    lr: float
    tried: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class RunEnded:
    """A run finished, failed or was interrupted."""

    run: Run


@dataclass(frozen=True)
class SourceRemade:
    """A source was trained again; `before` and `now` are its held-out losses, recorded and new (SourceRecord)."""

    source: SourceModel
    before: float
    now: float


Event = Compared | Began | RateChosen | RunEnded | SourceRemade
OnEvent = Callable[[Event], None]
