"""The results of a study, read from its directory (study/results.py says what is in each file)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.study import records, speedup
from hyperclone.study.records import FINISHED, RunRecord
from hyperclone.study.results import STUDY
from hyperclone.study.speedup import Contender, Cost, Curve, Speedup

AXES = {  # groups that are drawn against something: a field of the source, and what it is
    "source quality": ("tokens", "tokens that the source was trained on"),
    "source size": ("parameters", "parameters of the source"),
}


@dataclass(frozen=True)
class Results:
    """Everything that a report is made from.

    Attributes:
        study: study.json, its sources and arms with what runs.csv and sources.csv say of them.
        standings: of every run of the study: arm, seed, status, key and error.
        runs: finished runs by arm.
        speedups: by arm, of the seeds that the control has too.
        tuning: (learning rate, loss) by arm.
    """

    study: Mapping[str, Any]
    standings: Sequence[Mapping[str, Any]]
    runs: Mapping[str, Sequence[RunRecord]]
    speedups: Mapping[str, Sequence[Speedup]]
    tuning: Mapping[str, Sequence[tuple[float, float]]]

    @property
    def curves(self) -> dict[str, list[Curve]]:
        """Evaluations of the finished runs by arm."""
        return {arm: [run.curve for run in runs] for arm, runs in self.runs.items()}

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        """What each arm is, in the study's order."""
        arms: Mapping[str, Mapping[str, Any]] = self.study["arms"]
        return arms

    @property
    def control(self) -> str | None:
        """The arm that speed-ups are measured against."""
        control: str | None = self.study.get("control")
        return control

    @property
    def headline(self) -> str | None:
        """The arm that the report opens with: the study's choice, or its first clone."""
        clones = [name for name, arm in self.arms.items() if arm["kind"] == "clone"]
        chosen: str | None = self.study.get("headline") or next(iter(clones), None)
        return chosen

    def groups(self) -> dict[str, list[str]]:
        """Arms with results that are to be drawn together; those whose group has an axis have a figure of their own."""
        grouped: dict[str, list[str]] = {}
        for name in self.runs:
            for group in in_groups(self.arms[name]):
                grouped.setdefault(group, []).append(name)
        return {group: arms for group, arms in grouped.items() if len(arms) > 1 and group not in AXES}

    @property
    def tasks(self) -> list[str]:
        """Tasks that some run was evaluated on."""
        return sorted({name for runs in self.runs.values() for run in runs for name in run.curve.tasks})


def in_groups(arm: Mapping[str, Any]) -> list[str]:
    """The groups of an arm."""
    groups = arm.get("group") or []
    return [groups] if isinstance(groups, str) else list(groups)


def read(directory: Path) -> Results:
    """Results of a study, also of one that is still running.

    Raises:
        StudyError: this is no directory of a study, or a file in it is corrupt or truncated.
    """
    if not (directory / STUDY).is_file():
        raise StudyError("no results of a study are here", file=directory, expected=STUDY,
                         cure="hyperclone study STUDY.toml makes them, beside the file as STUDY.runs")  # fmt: skip
    study = _study(directory / STUDY)
    known, standings = records.load(directory), records.standings(directory)
    runs: dict[str, list[RunRecord]] = {}
    for arm in study["arms"]:
        rows = sorted((row for row in standings if row["arm"] == arm), key=lambda row: row["seed"])
        done = [replace(known.runs[row["key"]], arm=arm, seed=row["seed"]) for row in rows
                if row["status"] == FINISHED and row["key"] in known.runs]  # fmt: skip
        if done:
            runs[arm] = done
    tuning: dict[str, list[tuple[float, float]]] = {}
    for trial in records.trials(directory):
        if trial.arm in study["arms"]:
            tuning.setdefault(trial.arm, []).append((trial.lr, trial.loss))
    results = Results(_with_results(study, known, runs), standings, runs, {}, tuning)
    return replace(results, speedups=_speedups(results))


def against(results: Results, control: str) -> Results:
    """The same results, with speed-ups over another arm than the study's control.

    Raises:
        StudyError: it is none of the arms, or no run of it is finished.
    """
    if control == results.control:
        return results
    if control not in results.runs:
        raise StudyError("no finished run of this arm", field="control", found=control,
                         expected=", ".join(results.runs) or "wait for one")  # fmt: skip
    others = [arm for arm, about in results.arms.items() if about["kind"] == "clone" and arm != control]
    headline = results.headline if results.headline != control else next(iter(others), None)
    note = f"Speed-ups on this page are over “{results.arms[control]['label']}”, not over the study's own control."
    about = {"control": control, "headline": headline, "note": f"{results.study.get('note') or ''}\n\n{note}"}
    results = replace(results, study={**results.study, **about})
    return replace(results, speedups=_speedups(results))


def _speedups(results: Results) -> dict[str, list[Speedup]]:
    """Every finished run against the control with its seed, by arm."""
    if results.control is None:
        return {}
    sources = results.study.get("sources", {})

    def cost(arm: Mapping[str, Any]) -> Cost | None:
        spent = sources.get(arm.get("source"))
        return speedup.charged(arm["kind"], spent if spent and "flops" in spent else None)

    contenders = [
        Contender(
            arm=arm, seed=run.seed, kind=results.arms[arm]["kind"], source=results.arms[arm].get("source"),
            curve=run.curve, cost=cost(results.arms[arm]),
        )
        for arm, runs in results.runs.items() for run in runs
    ]  # fmt: skip
    compared: dict[str, list[Speedup]] = {}
    for run, against_control in speedup.compare_with_control(contenders, results.control):
        compared.setdefault(run.arm, []).append(against_control)
    return compared


def _with_results(
    study: dict[str, Any], known: records.Records, runs: Mapping[str, Sequence[RunRecord]]
) -> dict[str, Any]:
    """study.json with what is known of its sources and arms since."""
    arms = {
        name: {**arm, "optimizer": runs[name][0].optimizer, "parameters": runs[name][0].parameters,
               "flops_per_token": runs[name][0].flops_per_token}
        if name in runs else arm
        for name, arm in study["arms"].items()
    }  # fmt: skip
    sources = {
        name: {**(asdict(known.sources[key]) if (key := source.get("key")) in known.sources else {}), **source}
        for name, source in study.get("sources", {}).items()
    }
    return {**study, "arms": arms, "sources": sources}


def _study(file: Path) -> dict[str, Any]:
    try:
        study = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise StudyError("this file is corrupt or truncated", file=file, found=error) from None
    wanted: tuple[tuple[str, type], ...] = (("name", str), ("train", dict), ("arms", dict))
    for field, kind in wanted:
        if not isinstance(study, dict) or not isinstance(study.get(field), kind):
            raise StudyError("this file is not a study's", file=file, field=field, expected=f"a {kind.__name__}")
    for name, arm in study["arms"].items():
        if not isinstance(arm, dict) or not {"kind", "label", "train"} <= {*arm}:
            raise StudyError("this file is not a study's", file=file, field=f"arms.{name}",
                             expected="kind, label and train")  # fmt: skip
    return study  # type: ignore[no-any-return]
