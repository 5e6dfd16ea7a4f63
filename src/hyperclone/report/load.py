"""The results of a study, read from its directory (study/results.py says what is in each file)."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.study import speedup

_EVALUATED = ("step", "tokens", "flops", "seconds", "loss", "bits_per_byte")
_COMPARED = (
    "speedup_tokens", "speedup_flops", "speedup_seconds", "charged_flops", "charged_seconds",
    "difference_at_equal_tokens", "difference_to_target", "worth_tokens", "worth_charged", "forgetting",
)  # fmt: skip

AXES = {  # groups that are drawn against something: a field of the source, and what it is
    "source quality": ("tokens", "tokens that the source was trained on"),
    "source size": ("parameters", "parameters of the source"),
}


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run: (evaluations,) each; `tasks` by name, None where a task was not run."""

    seed: int
    step: tuple[float, ...]
    tokens: tuple[float, ...]
    flops: tuple[float, ...]
    seconds: tuple[float, ...]
    loss: tuple[float, ...]
    bits_per_byte: tuple[float, ...]
    tasks: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Results:
    """Everything that a report is made from.

    Attributes:
        study: study.json.
        curves: finished runs by arm.
        speedups: rows of speedup.csv by arm; None where a field is empty.
        tuning: (learning rate, loss) by arm.
        anatomy: rows of anatomy.csv; None where a field is empty.
        symmetry: rows of symmetry.csv.
        spectra: spectra.json.
    """

    study: Mapping[str, Any]
    curves: Mapping[str, Sequence[Curve]]
    speedups: Mapping[str, Sequence[Mapping[str, float | None]]]
    tuning: Mapping[str, Sequence[tuple[float, float]]]
    anatomy: Sequence[Mapping[str, Any]]
    symmetry: Sequence[Mapping[str, Any]]
    spectra: Sequence[Mapping[str, Any]]

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        """What each arm is, in the study's order."""
        found: Mapping[str, Mapping[str, Any]] = self.study["arms"]
        return found

    @property
    def control(self) -> str | None:
        """The arm that speed-ups are measured against."""
        found: str | None = self.study.get("reference")
        return found

    @property
    def headline(self) -> str | None:
        """The arm that the report opens with: the study's choice, or its first clone."""
        clones = [name for name, arm in self.arms.items() if arm["kind"] == "clone"]
        chosen: str | None = self.study.get("headline") or next(iter(clones), None)
        return chosen

    def groups(self) -> dict[str, list[str]]:
        """Arms with results that are to be drawn together; those whose group has an axis have a figure of their own."""
        found: dict[str, list[str]] = {}
        for name in self.curves:
            for group in in_groups(self.arms[name]):
                found.setdefault(group, []).append(name)
        return {group: arms for group, arms in found.items() if len(arms) > 1 and group not in AXES}

    @property
    def tasks(self) -> list[str]:
        """Tasks that some run was evaluated on."""
        return sorted(
            {
                name
                for curves in self.curves.values()
                for curve in curves
                for name, found in curve.tasks.items()
                if any(value is not None for value in found)
            }
        )


def in_groups(arm: Mapping[str, Any]) -> list[str]:
    """The groups of an arm."""
    told = arm.get("group") or []
    return [told] if isinstance(told, str) else list(told)


def read(runs: Path) -> Results:
    """Results of a study, also of one that is still running.

    Raises:
        StudyError: this is no directory of a study, or a file in it is torn.
    """
    if not (runs / "study.json").is_file():
        raise StudyError("no results of a study are here", file=runs, expected="study.json",
                         cure="hyperclone study STUDY.toml makes them, beside the file as STUDY.runs")  # fmt: skip
    study = _study(runs / "study.json")
    curves: dict[str, list[Curve]] = {}
    rows = _rows(runs / "results.csv", numbers=("seed", *_EVALUATED))
    for arm in study["arms"]:
        for seed in sorted({int(row["seed"]) for row in rows if row["arm"] == arm}):
            own = [row for row in rows if row["arm"] == arm and int(row["seed"]) == seed]
            columns = {name: tuple(row[name] for row in own) for name in _EVALUATED}
            tasks = {name.removeprefix("task:"): tuple(row[name] for row in own)
                     for name in own[0] if name.startswith("task:")}  # fmt: skip
            curves.setdefault(arm, []).append(Curve(seed=seed, tasks=tasks, **columns))
    speedups: dict[str, list[dict[str, float | None]]] = {}
    for row in _rows(runs / "speedup.csv", optional=_COMPARED):
        speedups.setdefault(row["arm"], []).append({name: row[name] for name in _COMPARED})
    tuning: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(runs / "tuning.csv", numbers=("lr", "loss")):
        tuning.setdefault(row["arm"], []).append((row["lr"], row["loss"]))
    anatomy = _rows(runs / "anatomy.csv", numbers=("tokens",), optional=("cosine", "layer"))
    symmetry = _rows(runs / "symmetry.csv", texts=("name",), numbers=("tokens", "cosine"))
    spectra = _json(runs / "spectra.json") if (runs / "spectra.json").is_file() else []
    if not isinstance(spectra, list) or not all(
        isinstance(one, dict) and {"arm", "seed", "tokens", "layer", "name", "values"} <= {*one} for one in spectra
    ):
        raise StudyError("this file is not a study's", file=runs / "spectra.json")

    def own_arms(by_arm: dict[str, Any]) -> dict[str, Any]:  # an older study's rows may name arms that are no more
        return {arm: by_arm[arm] for arm in study["arms"] if arm in by_arm}

    return Results(
        study, curves, own_arms(speedups), own_arms(tuning),
        [row for row in anatomy if row["arm"] in study["arms"]],
        [row for row in symmetry if row["arm"] in study["arms"]],
        [one for one in spectra if one["arm"] in study["arms"]],
    )  # fmt: skip


def against(results: Results, control: str) -> Results:
    """The same results, with speed-ups over another arm than the study's control.

    Raises:
        StudyError: it is none of the arms, or no run of it is finished.
    """
    if control == results.control:
        return results
    if control not in results.curves:
        raise StudyError("no finished run of this arm", field="control", found=control,
                         expected=", ".join(results.curves) or "wait for one")  # fmt: skip
    sources = results.study.get("sources", {})

    def curve(arm: str, one: Curve) -> speedup.Curve:
        return speedup.Curve(one.tokens, one.loss, one.seconds, results.arms[arm]["flops_per_token"])

    def has_source(arm: str) -> bool:
        return results.arms[arm]["kind"] in ("clone", "source")

    def cost(arm: str) -> speedup.Cost | None:
        return speedup.charged(results.arms[arm]["kind"], sources.get(results.arms[arm].get("source")))

    controls = {one.seed: curve(control, one) for one in results.curves[control]}
    found: dict[str, list[dict[str, float | None]]] = {}
    for arm, curves in results.curves.items():
        before = {
            one.seed: one.loss[0] for other, theirs in results.curves.items() for one in theirs
            if results.arms[other]["kind"] == "source" and results.arms[other]["source"] == results.arms[arm]["source"]
        }  # fmt: skip
        for one in curves:
            if one.seed in controls:
                base = before.get(one.seed, one.loss[0]) if has_source(arm) else None
                told = speedup.compare(
                    curve(arm, one), controls[one.seed], source=base, cost=cost(arm), control_cost=cost(control)
                )
                found.setdefault(arm, []).append({name: asdict(told)[name] for name in _COMPARED})
    others = [arm for arm, about in results.arms.items() if about["kind"] == "clone" and arm != control]
    headline = results.headline if results.headline != control else next(iter(others), None)
    note = f"Speed-ups on this page are over “{results.arms[control]['label']}”, not over the study's own control."
    about = {"reference": control, "headline": headline, "note": f"{results.study.get('note') or ''}\n\n{note}"}
    return replace(results, study={**results.study, **about}, speedups=found)


def _study(file: Path) -> dict[str, Any]:
    study = _json(file)
    wanted: tuple[tuple[str, type], ...] = (("name", str), ("train", dict), ("arms", dict))
    for field, kind in wanted:
        if not isinstance(study, dict) or not isinstance(study.get(field), kind):
            raise StudyError("this file is not a study's", file=file, field=field, expected=f"a {kind.__name__}")
    for name, arm in study["arms"].items():
        if not isinstance(arm, dict) or not {"kind", "label", "train"} <= {*arm}:
            raise StudyError("this file is not a study's", file=file, field=f"arms.{name}",
                             expected="kind, label and train")  # fmt: skip
    return study  # type: ignore[no-any-return]


def _rows(
    file: Path, *, texts: Collection[str] = (), numbers: Collection[str] = (), optional: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Rows of a table that has `arm` and the columns named here; numbers, optional ones and those of tasks as numbers.

    No file: no rows.
    """
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows: list[dict[str, Any]] = list(reader)
            columns = reader.fieldnames or []
    except (csv.Error, UnicodeDecodeError) as error:
        raise StudyError("this table is torn", file=file, found=error) from None
    if absent := [name for name in ("arm", *texts, *numbers, *optional) if name not in columns]:
        raise StudyError("this table is torn", file=file, found="no column " + ", ".join(absent))
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise StudyError("this table is torn", file=file, found=f"line {line} has another length than the first")
        for name in columns:
            if name in numbers or name in optional or name.startswith("task:"):
                row[name] = _number(file, line, name, row[name], needed=name in numbers)
    return rows


def _number(file: Path, line: int, name: str, text: str, *, needed: bool) -> float | None:
    if not text and not needed:
        return None
    try:
        return float(text)
    except ValueError:
        raise StudyError("this table is torn", file=file, field=f"{name}, line {line}", found=repr(text),
                         expected="a number") from None  # fmt: skip


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise StudyError("this file is torn", file=file, found=error) from None
