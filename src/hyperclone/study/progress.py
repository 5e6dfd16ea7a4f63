"""How a study stands, and what happens in it: for whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperclone.study.config import Arm, SourceModel, Study
from hyperclone.study.records import Records, RunRecord
from hyperclone.study.speedup import Speedup


@dataclass(eq=False)
class Run:
    """One arm with one seed; equal to itself only.

    Attributes:
        arm, seed: which.
        status: "waiting", "finished", "failed" or "interrupted".
        path: its directory, once its key is known; it may have been deleted since the run finished.
        record: its results, once it is finished.
        error: why it failed.
    """

    arm: Arm
    seed: int
    status: str = "waiting"
    path: Path | None = None
    record: RunRecord | None = None
    error: str | None = None


@dataclass
class Progress:
    """How a study stands.

    Attributes:
        study: the request.
        output: its directory.
        runs: every arm with every seed.
        records: what is known of everything that has finished, in this study or in an earlier version of it.
        sources: keys of the sources that are known, by name.
        rates: (learning rate, validation loss) that were tried, by arm.
        trials: keys of these short runs, by arm and learning rate.
        chosen: the learning rate of each tuned arm.
        speedups: of the finished runs.
    """

    study: Study
    output: Path
    runs: list[Run]
    records: Records = field(default_factory=Records)
    sources: dict[str, str] = field(default_factory=dict)
    rates: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    trials: dict[tuple[str, float], str] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    speedups: list[tuple[Run, Speedup]] = field(default_factory=list)


@dataclass(frozen=True)
class Began:
    """A training has begun: `path` is its directory, `run` the run that it is, None for sources and short runs."""

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
    """A source was trained again; `before` and `now` are its held-out losses, which another machine may make differ."""

    source: SourceModel
    before: float
    now: float


Event = Began | RateChosen | RunEnded | SourceRemade
Watch = Callable[[Event], None]
