"""The results of a study as plain files, written anew whenever a run ends: what `hyperclone report` and people read.

study.json    what was asked for, with what versions and hardware, what each arm is and how each run ended
results.csv   one row for each evaluation: arm, seed, step, tokens, flops, seconds, loss, bits_per_byte, tasks
speedup.csv   one row for each finished run (speedup.py)
tuning.csv    arm, lr, loss: validation loss of each learning rate that was tried
anatomy.csv   symmetry and ranks of each matrix, at the start and at the end
symmetry.csv  symmetry of each matrix with every evaluation
spectra.json  singular values
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hyperclone.io import hub
from hyperclone.study import paths
from hyperclone.study.config import Arm
from hyperclone.study.costs import Timing, costs, plain, sizes
from hyperclone.study.runner import Progress, Run
from hyperclone.study.speedup import Cost, Curve, Speedup, charged, compare
from hyperclone.training import hardware, metrics, run_record
from hyperclone.version import __version__


def evaluations(place: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, in order: step, tokens, seconds, loss, bits_per_byte, and accuracies of tasks."""
    lines = metrics.read(place)
    timing = Timing(lines)
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        row = rows.setdefault(line["step"], {"step": line["step"], "tokens": line["tokens"]})
        if "eval_loss" in line:
            row |= {"loss": line["eval_loss"], "bits_per_byte": line["bits_per_byte"]}
        for task, found in line.get("tasks", {}).items():
            row[f"task:{task}"] = next(
                (found[name] for name in ("acc", "acc_norm", "exact_match") if name in found), None
            )
    kept = [row for _, row in sorted(rows.items()) if "loss" in row]
    return [{**row, "seconds": round(timing.at(row["tokens"]), 3)} for row in kept]


def write(progress: Progress) -> list[tuple[Run, Speedup]]:
    """Write all files; the speed-ups."""
    output = progress.output
    done = [run for run in progress.runs if run.status == "finished" and run.path is not None]
    told = {id(run): paths.ended(run.path) or {} for run in done if run.path is not None}
    curves = {id(run): evaluations(run.path) for run in done if run.path is not None}
    rows = [
        {"arm": run.arm.name, "seed": run.seed, **row, "flops": row["tokens"] * told[id(run)]["flops_per_token"]}
        for run in done for row in curves[id(run)]
    ]  # fmt: skip
    tasks = sorted({name for row in rows for name in row if name.startswith("task:")})
    _table(
        output / "results.csv",
        ["arm", "seed", "step", "tokens", "flops", "seconds", "loss", "bits_per_byte", *tasks],
        rows,
    )
    found = _speedups(progress, done, told, curves)
    _table(
        output / "speedup.csv", ["arm", "seed", *(field.name for field in fields(Speedup))],
        [{"arm": run.arm.name, "seed": run.seed, **asdict(one)} for run, one in found],
    )  # fmt: skip
    if progress.rates:
        tried = [{"arm": arm, "lr": lr, "loss": loss} for arm, pairs in progress.rates.items() for lr, loss in pairs]
        _table(output / "tuning.csv", ["arm", "lr", "loss"], tried)
    _anatomy(output, done, told)
    paths.write(output / "study.json", _summary(progress, told))
    return found


def _speedups(
    progress: Progress, done: Sequence[Run], told: Mapping[int, Any], curves: Mapping[int, Any]
) -> list[tuple[Run, Speedup]]:
    """Every finished run against the control with its seed."""

    def curve(run: Run) -> Curve:
        rows = curves[id(run)]
        tokens, loss, seconds = ([row[key] for row in rows] for key in ("tokens", "loss", "seconds"))
        return Curve(tokens, loss, seconds, told[id(run)]["flops_per_token"])

    def cost(arm: Arm) -> Cost | None:
        return charged(arm.kind, None if arm.source is None else source_cost(progress, arm.source.name))

    found = []
    for run in done:
        control = next((one for one in done if one.arm.name == progress.study.control and one.seed == run.seed), None)
        if control is None:
            continue
        grown = run.arm.source is not None and run.arm.kind != "random"
        # Its loss before training, of the source itself where it was run (a stacked clone does not start there).
        base = next((one for one in done if one.arm.kind == "source" and one.arm.source == run.arm.source
                     and one.seed == run.seed), run)  # fmt: skip
        source = curves[id(base)][0]["loss"] if grown else None
        against = compare(
            curve(run), curve(control), source=source,
            cost=cost(run.arm), control_cost=cost(control.arm),
        )  # fmt: skip
        found.append((run, against))
    return found


def source_cost(progress: Progress, name: str) -> dict[str, Any]:
    """What is known of a source: parameters, and of its own training (if it was ours) tokens, flops, seconds, loss."""
    place = progress.sources.get(name)
    if place is None:
        place = hub.resolve(progress.study.sources[name].model)
    trained = (place / run_record.FILE).is_file()
    if not trained:
        parameters, _ = sizes(place / "config.json", 2)
        return {
            "parameters": parameters,
            "tokens": None,
            "flops": None,
            "seconds": None,
            "loss": None,
            "trained": False,
        }
    spent = costs(place, {})
    return {
        "parameters": spent["parameters"], "tokens": spent["tokens"],
        "flops": spent["tokens"] * spent["flops_per_token"], "seconds": spent["seconds"],
        "loss": metrics.last_loss(place), "trained": True, "hardware": (paths.ended(place) or {}).get("hardware"),
    }  # fmt: skip


def _summary(progress: Progress, told: Mapping[int, Any]) -> dict[str, Any]:
    study, ended_runs = progress.study, list(told.values())
    arms: dict[str, Any] = {}
    for arm in study.arms.values():
        ended: Mapping[str, Any] = next(
            (told[id(run)] for run in progress.runs if run.arm is arm and told.get(id(run))), {}
        )
        rate = progress.chosen.get(arm.like or arm.name)
        arms[arm.name] = {
            "label": arm.label, "kind": arm.kind, "group": arm.group,
            "source": None if arm.source is None else arm.source.name, "growth": dict(arm.growth) or None,
            "state": arm.state,
            "train": {key: value for key, value in plain(arm.train).items() if plain(study.train).get(key) != value},
            "optimizer": (ended.get("train") or {}).get("optimizer") or "adamw",
            "tuned": None if rate is None else {"lr": rate}, "like": arm.like,
            "parameters": ended.get("parameters"), "flops_per_token": ended.get("flops_per_token"),
        }  # fmt: skip
    return {
        "name": study.name, "note": study.note, "date": f"{datetime.now(UTC):%Y-%m-%d}", "hyperclone": __version__,
        "versions": {
            name: ", ".join(sorted({one["versions"][name] for one in ended_runs if name in one.get("versions", {})}))
            for name in sorted({name for one in ended_runs for name in one.get("versions", {})})
        },
        "hardware": hardware.distinct(one for run in ended_runs for one in run.get("hardware", [])),
        "reference": study.control, "headline": study.headline,
        "seeds": list(study.seeds),
        "train": plain(study.train),
        "tune": None if study.tuning is None else {"seed": study.tuning.seed, **plain(study.tuning.train)},
        "sources": {name: {**source_cost(progress, name), "train": plain(one.train) if one.train else None}
                    for name, one in study.sources.items() if name in progress.sources},
        "arms": arms,
        "runs": [
            {
                "arm": run.arm.name, "seed": run.seed, "status": run.status,
                "error": run.error and run.error.replace(f"{progress.output}{os.sep}", ""),
                "path": None if run.path is None else str(run.path.relative_to(progress.output)),
                **{key: told.get(id(run), {}).get(key) for key in ("key", "tokens", "seconds")},
            }
            for run in progress.runs
        ],
    }  # fmt: skip


def _anatomy(output: Path, done: Sequence[Run], told: Mapping[int, Any]) -> None:
    rows, spectra = [], []
    for run in done:
        assert run.path is not None
        try:
            both = json.loads((run.path / paths.ANATOMY).read_text())
        except (OSError, ValueError):
            continue
        for when, tokens in (("start", 0), ("end", told[id(run)]["tokens"])):
            for one in both[when]["tensors"]:
                here = {"arm": run.arm.name, "seed": run.seed, "tokens": tokens, "layer": one["layer"],
                        "kind": one["kind"], "name": one["name"]}  # fmt: skip
                read, own, base = one["read"] or {}, one["spectrum"] or {}, one["source_spectrum"] or {}
                rows.append({**here, "cosine": read.get("symmetry"), "apart": read.get("apart"),
                             "effective_rank": own.get("effective_rank"),
                             "source_effective_rank": base.get("effective_rank")})  # fmt: skip
                if own:
                    spectra.append({**here, "values": [float(f"{value:.4g}") for value in own["values"]]})
    along = [
        {"arm": run.arm.name, "seed": run.seed, "step": line["step"], "tokens": line["tokens"],
         "name": name.removeprefix("read/"), "cosine": value}
        for run in done if run.path is not None for line in metrics.read(run.path) if "anatomy" in line
        for name, value in line["anatomy"].items() if name.startswith("read/")
    ]  # fmt: skip
    if along:
        _table(output / "symmetry.csv", list(along[0]), along)
    if rows:
        _table(output / "anatomy.csv", list(rows[0]), rows)
        paths.write(output / "spectra.json", spectra)


def _table(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.8g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    partial = file.with_name(f".{file.name}")
    partial.write_text(stream.getvalue())
    os.replace(partial, file)
