"""The results of a study, read from its directory (study/results.py says what is in each file)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.study import frontier, record_tables, speedup
from hyperclone.study.frontier import Pair
from hyperclone.study.records import RunRecord, RunRow, SourceRecord
from hyperclone.study.request import STUDY
from hyperclone.study.speedup import Contender, Cost, Curve, Speedup

AXES = {  # groups that a figure shows against something: a field of the source, and what it is
    "source quality": ("tokens", "tokens that the source was trained on"),
    "source size": ("parameters", "parameters of the source"),
}


@dataclass(frozen=True)
class Results:
    """Everything that a report is made from.

    Attributes:
        study: study.json, its sources and arms with what runs.csv and sources.csv say of them.
        rows: every run of the study, and what became of it.
        runs: finished runs by arm.
        sources: records of sources by key; the finished runs name theirs.
        speedups: by arm, of the seeds that the control has too.
        tuning: (learning rate, loss) by arm.
    """

    study: Mapping[str, Any]
    rows: Sequence[RunRow]
    runs: Mapping[str, Sequence[RunRecord]]
    sources: Mapping[str, SourceRecord]
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
        """Arms with results that share a figure; those whose group has an axis have a separate one."""
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
    recorded = record_tables.load(directory)
    if recorded.request is None:
        raise StudyError("no results of a study are here", file=directory, expected=STUDY,
                         cure="hyperclone study STUDY.toml makes them, beside the file as STUDY.runs")  # fmt: skip
    study, sources = recorded.request, recorded.records.sources
    finished = sorted(recorded.finished(), key=lambda pair: pair[0].seed)
    runs: dict[str, list[RunRecord]] = {}
    for arm in study["arms"]:
        if done := [replace(record, arm=arm, seed=row.seed) for row, record in finished if row.arm == arm]:
            runs[arm] = done
    tuning: dict[str, list[tuple[float, float]]] = {}
    for tuning_run in recorded.tuning_rows:
        if tuning_run.arm in study["arms"]:
            tuning.setdefault(tuning_run.arm, []).append((tuning_run.lr, tuning_run.loss))
    results = Results(_with_results(study, sources, runs), recorded.rows, runs, sources, {}, tuning)
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
    compared: dict[str, list[Speedup]] = {}
    if results.control is not None:
        for run, against_control in speedup.compare_with_control(_contenders(results), results.control):
            compared.setdefault(run.arm, []).append(against_control)
    return compared


def pairs(results: Results) -> dict[str, list[Pair]]:
    """By arm, its seeds beside the control's, with the runs of their branches."""
    if results.control is None:
        return {}
    branch_of = {name: trunk for name, arm in results.arms.items() if (trunk := arm.get("branch_of")) is not None}
    return frontier.pairs(_contenders(results), results.control, branch_of)


def _contenders(results: Results) -> list[Contender]:
    def cost(kind: str, run: RunRecord) -> Cost | None:
        source = results.sources.get(run.source)
        return speedup.charged(kind, None if source is None else source.cost)

    return [
        Contender(
            arm=arm, seed=run.seed, kind=results.arms[arm]["kind"], source=run.source, curve=run.curve,
            cost=cost(results.arms[arm]["kind"], run),
        )
        for arm, runs in results.runs.items() for run in runs
    ]  # fmt: skip


def _with_results(
    study: Mapping[str, Any], records: Mapping[str, SourceRecord], runs: Mapping[str, Sequence[RunRecord]]
) -> dict[str, Any]:
    """study.json with what is known of its sources and arms since."""
    arms = {
        name: {**arm, "optimizer": runs[name][0].optimizer, "parameters": runs[name][0].parameters,
               "flops_per_token": runs[name][0].flops_per_token}
        if name in runs else arm
        for name, arm in study["arms"].items()
    }  # fmt: skip
    sources = {
        name: {**(asdict(records[source["key"]]) if source["key"] is not None else {}), **source}
        for name, source in study["sources"].items()
    }
    return {**study, "arms": arms, "sources": sources}
