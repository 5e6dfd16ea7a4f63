"""The results of a study as plain files, written whenever there are new ones: what `hyperclone report` and people read.

study.json      what was asked for: arms, sources, options of training, seeds (request.py)
runs.csv, evaluations.csv, tuning.csv, sources.csv, symmetry.csv, anatomy.csv, spectra.csv    record_tables.py
speedup.csv     one row for each finished run, against the control (speedup.py)

Together they are some hundred kilobytes, hold no path of a machine, and are committed: a rerun finds in them what has
finished. A file whose text would not change is not touched. While no run can be identified on this machine, what is on
record stays as it is, and only sources.csv is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from hyperclone.errors import DestinationError
from hyperclone.io.files import write_texts
from hyperclone.study import request, tables
from hyperclone.study.config import SourceModel
from hyperclone.study.layers import Spectrum
from hyperclone.study.progress import Progress, Run
from hyperclone.study.record_tables import SMALL, TABLES, TASK
from hyperclone.study.records import FAILED, FINISHED, FORMER, INTERRUPTED, RunRecord, TuningRun
from hyperclone.study.speedup import Contender, Cost, Curve, Speedup, charged, compare_with_control
from hyperclone.version import __version__

SPEEDUP = "speedup.csv"
_RUN = ("arm", "seed", "key")  # columns that say which run a row is of
_Rows = list[dict[str, Any]]


def write(progress: Progress) -> list[tuple[Run, Speedup]]:
    """Write all files; the speed-ups of the finished runs.

    Raises:
        DestinationError: they cannot be written.
    """
    speedups = compare(progress)
    if not progress.identified and (progress.records.runs or progress.records.tuning_runs):
        write_sources(progress)
        return speedups
    rows = _rows(progress)
    texts = {name: tables.render(_columns(name, rows[name]), rows[name]) for name in TABLES}
    texts[SPEEDUP] = tables.render(
        [*_RUN[:2], *(column.name for column in fields(Speedup))],
        [{"arm": run.arm.name, "seed": run.seed, **asdict(speedup)} for run, speedup in speedups],
    )
    counts = {name: len(rows[name]) for name in TABLES if rows[name]}
    texts[request.STUDY] = json.dumps({**_request(progress), "rows": counts}, indent=1) + "\n"
    _replace(progress.output, texts)
    return speedups


def write_sources(progress: Progress) -> None:
    """Write sources.csv alone, and into study.json how many rows it has and keys of sources that it lacks."""
    rows = [asdict(source) for source in progress.records.sources.values()]
    texts = {"sources.csv": tables.render(_columns("sources.csv", rows), rows)}
    if progress.recorded.request is not None:
        content = json.loads(json.dumps(progress.recorded.request))
        content["rows"]["sources.csv"] = len(rows)
        for name, source in content["sources"].items():
            source["key"] = source["key"] or progress.sources.get(name)
        texts[request.STUDY] = json.dumps(content, indent=1) + "\n"
    _replace(progress.output, texts)


def _replace(output: Path, texts: Mapping[str, str]) -> None:
    """Write the files whose text has changed, together; those without text are removed."""
    changed = {}
    for name, text in texts.items():
        file = output / name
        if not text:
            file.unlink(missing_ok=True)
        elif not file.is_file() or file.read_bytes() != text.encode():
            changed[file] = text
    try:
        write_texts(changed)
    except OSError as error:
        raise DestinationError("the results cannot be written", file=output, found=error.strerror,
                               cure="mend that, and rerun the same command to resume") from None  # fmt: skip


def compare(progress: Progress) -> list[tuple[Run, Speedup]]:
    """Every finished run against the control with its seed."""
    study = progress.study
    if study.control is None:
        return []
    runs = {(run.arm.name, run.seed): (run, run.result) for run in progress.runs if run.result is not None}

    def cost(run: Run, result: RunRecord) -> Cost | None:
        source = progress.records.sources.get(result.source)
        return charged(run.arm.kind, None if source is None else source.cost)

    contenders = [
        Contender(
            arm=run.arm.name, seed=run.seed, kind=run.arm.kind, source=result.source, curve=result.curve,
            cost=cost(run, result),
        )
        for run, result in runs.values()
    ]  # fmt: skip
    return [(runs[one.arm, one.seed][0], speedup) for one, speedup in compare_with_control(contenders, study.control)]


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON; files by their names, since paths are a machine's own."""
    return {
        name: [Path(one).name for one in ([value] if isinstance(value, str) else value)]
        if name in ("data", "eval_data")
        else value
        for name, value in options.items()
        if name != "cache"
    }


def _rows(progress: Progress) -> dict[str, _Rows]:
    """The rows of each table."""
    every = _every_record(progress)
    return {
        "runs.csv": list(_run_rows(progress)),
        "tuning.csv": [asdict(run) for run in _tuning_runs(progress)],
        "sources.csv": [asdict(source) for source in progress.records.sources.values()],
        "evaluations.csv": [{**_which(one), **row} for one in every for row in evaluation_rows(one.curve)],
        "symmetry.csv": [{**_which(one), **asdict(layer)} for one in every for layer in one.symmetry],
        "anatomy.csv": [{**_which(one), **asdict(layer)} for one in every for layer in one.anatomy],
        "spectra.csv": [{**_which(one), **_spectrum_row(spectrum)} for one in every for spectrum in one.spectra],
    }


def _columns(name: str, rows: _Rows) -> list[str]:
    """The columns of a table; that of evaluations also has the tasks, that of runs what small models took."""
    there = {column for row in rows for column in row}
    tasks = {column for column in there if name == "evaluations.csv" and column.startswith(TASK)}
    return [*TABLES[name], *sorted(tasks), *(column for column in SMALL if name == "runs.csv" and column in there)]


def evaluation_rows(curve: Curve) -> _Rows:
    """A curve as rows of evaluations.csv."""
    names = ("step", "tokens", "seconds", "loss", "bits_per_byte")
    columns: dict[str, Sequence[Any]] = {name: getattr(curve, name) for name in names}
    columns |= {f"{TASK}{name}": column for name, column in curve.tasks.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _spectrum_row(spectrum: Spectrum) -> dict[str, Any]:
    return {**asdict(spectrum), "values": " ".join(f"{value:.4g}" for value in spectrum.values)}


def _which(record: RunRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _RUN}


def _every_record(progress: Progress) -> list[RunRecord]:
    """Records of the study's runs, in its order, then those that it no longer asks for; each once."""
    found: dict[str, RunRecord] = {}
    for record in (*(run.result for run in progress.runs if run.result is not None), *progress.records.runs.values()):
        found.setdefault(record.key, record)
    return list(found.values())


def _run_rows(progress: Progress) -> Iterable[dict[str, Any]]:
    before = {(row.arm, row.seed): row for row in progress.recorded.rows}
    current = set()
    for run in progress.runs:
        row = before.get((run.arm.name, run.seed))
        which = {"arm": run.arm.name, "seed": run.seed}
        if run.result is not None:
            current.add(run.result.key)
            yield {**_result(run.result), **which, "status": FINISHED}
        elif not run.identified and run.status == FAILED and row is not None and row.status == INTERRUPTED:
            yield {**which, "status": INTERRUPTED}  # it did not get so far as to fail
        else:
            error = run.error and " ".join(run.error.replace(f"{progress.output}{os.sep}", "").split())
            yield {**which, "status": run.status, "error": error}
    for key, record in progress.records.runs.items():
        if key not in current:
            yield {**_result(record), "status": FORMER}


def _result(record: RunRecord) -> dict[str, Any]:
    """The columns of a finished run."""
    shown = {name: getattr(record, name) for name in TABLES["runs.csv"] if hasattr(record, name)}
    loss, flops = record.curve.loss, round(record.curve.flops_at(record.tokens))
    small = {name: getattr(record.curve, name) for name in SMALL} if record.curve.small_tokens else {}
    return {**shown, "flops": flops, "start_loss": loss[0], "final_loss": loss[-1], **small}


def _tuning_runs(progress: Progress) -> Iterable[TuningRun]:
    """Tuning runs of the study's arms, in its order, then those that it no longer asks for: these of no arm."""
    current = set()
    for arm in progress.study.arms:
        for _, run in sorted(progress.tuning.get(arm, {}).items()):
            current.add(run.key)
            yield run
    for key, run in progress.records.tuning_runs.items():
        if key not in current:
            yield replace(run, arm="")


def _request(progress: Progress) -> dict[str, Any]:
    study = progress.study
    arms: dict[str, Any] = {}
    for arm in study.arms.values():
        shared = plain(study.train)
        arms[arm.name] = {
            "label": arm.label, "kind": arm.kind, "group": arm.group,
            "source": None if arm.source is None else arm.source.name, "growth": dict(arm.growth) or None,
            "moments": arm.moments,
            "train": {key: value for key, value in plain(arm.train).items() if shared.get(key) != value},
            "tuned": _tuned(progress, arm.like or arm.name), "like": arm.like,
            **({} if arm.branch_of is None else {"branch_of": arm.branch_of}),
            **({} if arm.grow_at is None else {"grow_at": arm.grow_at}),
        }  # fmt: skip
    return {
        "name": study.name, "note": study.note, "hyperclone": __version__,
        "control": study.control, "headline": study.headline, "seeds": list(study.seeds),
        "train": plain(study.train),
        "tune": None if study.tuning is None else {"seed": study.tuning.seed, **plain(study.tuning.train)},
        "sources": {name: _source(progress, source) for name, source in study.sources.items()},
        "arms": arms,
    }  # fmt: skip


def _tuned(progress: Progress, arm: str) -> dict[str, Any] | None:
    """The chosen rate; None if there is none yet, or if one that was tried since is better."""
    tried, chosen = progress.tuning.get(arm, {}), progress.chosen.get(arm)
    if chosen not in tried or tried[chosen].loss > min(run.loss for run in tried.values()):
        return None
    return {"lr": chosen}


def _source(progress: Progress, source: SourceModel) -> dict[str, Any]:
    key = progress.sources.get(source.name, progress.kept_sources.get(source.name))
    return {"key": key, "train": plain(source.train) if source.train else None}


def losses(runs: Sequence[Run]) -> list[float]:
    """The last held-out losses of the finished ones among some runs."""
    return [run.result.curve.loss[-1] for run in runs if run.result is not None]
