"""The results of a study as plain files, written anew whenever a run ends: what `hyperclone report` and people read.

study.json      what was asked for: arms, sources, options of training, seeds
runs.csv, evaluations.csv, tuning.csv, sources.csv, symmetry.csv, anatomy.csv, spectra.csv    records.py
speedup.csv     one row for each finished run, against the control (speedup.py)

Together they are some hundred kilobytes, hold no path of a machine, and are committed: a rerun finds in them what has
finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hyperclone.io.files import write_text
from hyperclone.study import records, tables
from hyperclone.study.config import SourceModel
from hyperclone.study.progress import Progress, Run
from hyperclone.study.records import RUN, RunRecord, Trial
from hyperclone.study.speedup import Contender, Cost, Speedup, charged, compare_with_control
from hyperclone.version import __version__

STUDY = "study.json"
_RUNS = (*RUN[:2], "status", "key", "lr", "optimizer", "tokens", "parameters", "flops_per_token", "flops", "seconds",
         "start_loss", "final_loss", "hardware", "versions", "date", "error")  # fmt: skip


def write(progress: Progress) -> list[tuple[Run, Speedup]]:
    """Write all files; the speed-ups of the finished runs."""
    output, known = progress.output, progress.records
    speedups = compare(progress)
    every = _every_record(progress)
    tables.write(output / "runs.csv", _RUNS, _run_rows(progress))
    tables.write(output / "tuning.csv", records.TRIAL, (asdict(trial) for trial in _trials(progress)))
    tables.write(output / "sources.csv", records.SOURCE, (asdict(source) for source in known.sources.values()))
    tasks = sorted({task for record in every for task in record.curve.tasks})
    tables.write(
        output / "evaluations.csv", [*RUN, *records.EVALUATION, *(records.TASK + task for task in tasks)],
        ({**_which(one), **row} for one in every for row in records.evaluation_rows(one.curve)),
    )  # fmt: skip
    tables.write(
        output / "symmetry.csv", [*RUN, *records.SYMMETRY],
        ({**_which(one), **asdict(layer)} for one in every for layer in one.symmetry),
    )  # fmt: skip
    tables.write(
        output / "anatomy.csv", [*RUN, *records.ANATOMY],
        ({**_which(one), **asdict(layer)} for one in every for layer in one.anatomy),
    )  # fmt: skip
    tables.write(
        output / "spectra.csv", [*RUN, *records.SPECTRUM],
        ({**_which(one), **records.spectrum_row(spectrum)} for one in every for spectrum in one.spectra),
    )  # fmt: skip
    tables.write(
        output / "speedup.csv", [*RUN[:2], *(column.name for column in fields(Speedup))],
        ({"arm": run.arm.name, "seed": run.seed, **asdict(speedup)} for run, speedup in speedups),
    )  # fmt: skip
    write_text(output / STUDY, json.dumps(_request(progress), indent=1) + "\n")
    return speedups


def compare(progress: Progress) -> list[tuple[Run, Speedup]]:
    """Every finished run against the control with its seed."""
    study = progress.study
    if study.control is None:
        return []
    runs = {(run.arm.name, run.seed): run for run in progress.runs if run.record is not None}

    def cost(run: Run) -> Cost | None:
        source = None if run.arm.source is None else progress.sources.get(run.arm.source.name)
        return charged(run.arm.kind, None if source is None else asdict(progress.records.sources[source]))

    contenders = [
        Contender(
            arm=run.arm.name, seed=run.seed, kind=run.arm.kind, curve=run.record.curve, cost=cost(run),
            source=None if run.arm.source is None else run.arm.source.name,
        )
        for run in runs.values() if run.record is not None
    ]  # fmt: skip
    return [(runs[one.arm, one.seed], speedup) for one, speedup in compare_with_control(contenders, study.control)]


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON; files by their names, since paths are a machine's own."""
    return {
        name: [Path(one).name for one in ([value] if isinstance(value, str) else value)]
        if name in ("data", "eval_data")
        else value
        for name, value in options.items()
        if name != "cache"
    }


def _which(record: RunRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in RUN}


def _every_record(progress: Progress) -> list[RunRecord]:
    """Records of the study's runs, in its order, then those that it no longer asks for; each once."""
    found: dict[str, RunRecord] = {}
    for record in (*(run.record for run in progress.runs if run.record is not None), *progress.records.runs.values()):
        found.setdefault(record.key, record)
    return list(found.values())


def _run_rows(progress: Progress) -> Iterable[dict[str, Any]]:
    current = set()
    for run in progress.runs:
        error = run.error and " ".join(run.error.replace(f"{progress.output}{os.sep}", "").split())
        row = {"arm": run.arm.name, "seed": run.seed, "status": run.status, "error": error}
        if run.record is not None:
            current.add(run.record.key)
            row = {**_result(run.record), **row}
        yield row
    for key, record in progress.records.runs.items():
        if key not in current:
            yield {**_which(record), **_result(record), "status": records.FORMER}


def _result(record: RunRecord) -> dict[str, Any]:
    shown = ("key", *records.COSTS, "optimizer", "hardware", "versions", "date")
    return {
        **{name: getattr(record, name) for name in shown}, "flops": record.tokens * record.flops_per_token,
        "start_loss": record.curve.loss[0], "final_loss": record.curve.loss[-1],
    }  # fmt: skip


def _trials(progress: Progress) -> Iterable[Trial]:
    """Trials of the study's arms, in its order, then those that it no longer asks for: these of no arm."""
    known, current = progress.records.trials, set()
    for arm, tried in progress.rates.items():
        for lr, _ in tried:
            key = progress.trials[arm, lr]
            current.add(key)
            yield Trial(key=key, arm=arm, lr=lr, seed=known[key].seed, loss=known[key].loss)
    for key, trial in known.items():
        if key not in current:
            yield Trial(key=key, arm="", lr=trial.lr, seed=trial.seed, loss=trial.loss)


def _request(progress: Progress) -> dict[str, Any]:
    study = progress.study
    arms: dict[str, Any] = {}
    for arm in study.arms.values():
        lr = progress.chosen.get(arm.like or arm.name)
        shared = plain(study.train)
        arms[arm.name] = {
            "label": arm.label, "kind": arm.kind, "group": arm.group,
            "source": None if arm.source is None else arm.source.name, "growth": dict(arm.growth) or None,
            "moments": arm.moments,
            "train": {key: value for key, value in plain(arm.train).items() if shared.get(key) != value},
            "tuned": None if lr is None else {"lr": lr}, "like": arm.like,
        }  # fmt: skip
    return {
        "name": study.name, "note": study.note, "hyperclone": __version__,
        "control": study.control, "headline": study.headline, "seeds": list(study.seeds),
        "train": plain(study.train),
        "tune": None if study.tuning is None else {"seed": study.tuning.seed, **plain(study.tuning.train)},
        "sources": {name: _source(progress, source) for name, source in study.sources.items()},
        "arms": arms,
    }  # fmt: skip


def _source(progress: Progress, source: SourceModel) -> dict[str, Any]:
    return {"key": progress.sources.get(source.name), "train": plain(source.train) if source.train else None}


def losses(runs: Sequence[Run]) -> list[float]:
    """The last held-out losses of the finished ones among some runs."""
    return [run.record.curve.loss[-1] for run in runs if run.record is not None]
