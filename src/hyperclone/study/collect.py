"""Records of what has finished, from the files that its training left behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.study import paths
from hyperclone.study.layers import (
    LayerAnatomy,
    LayerSymmetry,
    Spectrum,
    layer_means,
    layer_symmetry,
    middle_spectra,
)
from hyperclone.study.records import RunRecord, SourceRecord
from hyperclone.study.speedup import Curve
from hyperclone.study.tables import rounded
from hyperclone.training import metrics, resume
from hyperclone.training.config import Training

_ACCURACIES = ("acc", "acc_norm", "exact_match")  # the first that a task has


def run(path: Path, *, key: str, arm: str, seed: int, source: str, options: Mapping[str, Any]) -> RunRecord:
    """The record of a run that has ended in a directory.

    Args:
        path: the directory.
        key, arm, seed: what run it is.
        source: key of the record of the source that it began from; empty if it has none.
        options: those of its training.

    Raises:
        StudyError: it was not evaluated before and after training.
    """
    training = json.loads((path / resume.RECORD_FILE).read_text())
    lines, timing = metrics.read(path), Timing(metrics.read(path))
    tokens = training["curve"]["steps"] * training["curve"]["batch_tokens"]
    small = training.get("small", {"tokens": 0, "flops_per_token": 0})
    if small["tokens"]:
        before, steps = metrics.read(path / resume.STAGES[0]), small["tokens"] // training["curve"]["batch_tokens"]
        timing = Timing(before, timing, at=small["tokens"])
        lines = [*before, *_later(lines, steps=steps, tokens=small["tokens"])]
        tokens += small["tokens"]
    parameters, per_token = sizes(path / "config.json", training["curve"]["seq_len"])
    anatomy, spectra = _examined(path, tokens)
    return RunRecord(
        key=key, arm=arm, seed=seed, source=source, lr=float(options.get("lr", Training.lr)),
        optimizer=options["optimizer"], tokens=tokens, parameters=parameters, flops_per_token=per_token,
        seconds=round(timing.at(tokens), 3), hardware=hardware(training), versions=versions(training),
        date=f"{datetime.now(UTC):%Y-%m-%d}", symmetry=_symmetry(lines), anatomy=anatomy, spectra=spectra,
        curve=replace(
            _curve(path, lines, timing, tokens, per_token), small_tokens=small["tokens"],
            small_flops_per_token=small["flops_per_token"],
        ),
    )  # fmt: skip


def source(path: Path, *, key: str, name: str) -> SourceRecord:
    """The record of a source; what its training took is known if `hyperclone train` made it."""
    if not (path / resume.RECORD_FILE).is_file():
        parameters, _ = sizes(path / "config.json", 2)
        return SourceRecord(key=key, name=name, parameters=parameters)
    training = json.loads((path / resume.RECORD_FILE).read_text())
    tokens = training["curve"]["steps"] * training["curve"]["batch_tokens"]
    parameters, per_token = sizes(path / "config.json", training["curve"]["seq_len"])
    loss = metrics.last_loss(path)
    return SourceRecord(
        key=key, name=name, parameters=parameters, tokens=tokens, flops=tokens * per_token,
        seconds=round(Timing(metrics.read(path)).at(tokens), 3), loss=None if loss is None else rounded(loss),
        hardware=hardware(training),
    )  # fmt: skip


def _later(lines: Iterable[Mapping[str, Any]], *, steps: int, tokens: int) -> list[dict[str, Any]]:
    """Lines of a clone as those of the whole training, whose small model took so many steps and tokens.

    Without its evaluation before its first step: there is the small model's after its last, at the same point.
    """
    return [{**line, "step": line["step"] + steps, "tokens": line["tokens"] + tokens} for line in lines if line["step"]]


def _curve(path: Path, lines: Sequence[Mapping[str, Any]], timing: Timing, tokens: int, flops_per_token: int) -> Curve:
    """The evaluations in the lines of metrics.jsonl."""
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        row = rows.setdefault(line["step"], {"step": line["step"], "tokens": line["tokens"], "tasks": {}})
        if "eval_loss" in line:
            row |= {"loss": line["eval_loss"], "bits_per_byte": line["bits_per_byte"]}
        for task, scores in line.get("tasks", {}).items():
            row["tasks"][task] = next((scores[name] for name in _ACCURACIES if name in scores), None)
    evaluated = [row for _, row in sorted(rows.items()) if "loss" in row]
    at = [row["tokens"] for row in evaluated]
    if not at or (at[0], at[-1]) != (0, tokens):
        raise StudyError("this run has no held-out loss before and after training", file=path / metrics.FILE,
                         found=f"evaluations after {', '.join(map(str, at)) or 'no'} tokens",
                         expected=f"one after 0 and one after {tokens}", cure="give eval_data or held_out")  # fmt: skip
    tasks = sorted({task for row in evaluated for task in row["tasks"]})
    return Curve(
        step=[row["step"] for row in evaluated], tokens=[row["tokens"] for row in evaluated],
        seconds=[round(timing.at(row["tokens"]), 3) for row in evaluated],
        loss=[rounded(row["loss"]) for row in evaluated],
        bits_per_byte=[rounded(row["bits_per_byte"]) for row in evaluated],
        flops_per_token=flops_per_token, tasks={task: [row["tasks"].get(task) for row in evaluated] for task in tasks},
    )  # fmt: skip


def hardware(training: Mapping[str, Any]) -> str:
    """The machines of a run, in words, from its training.json."""
    return "; ".join(_machine(one) for one in training.get("hardware", []))


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [machine.get("gpu") or machine.get("cpu")]
    parts += [
        f"{number} {word}{'' if number == 1 else 's'}{rest}"
        for name, word, rest in (("cores", "core", ""), ("threads", "thread", " a run"))
        if (number := machine.get(name)) is not None
    ]
    return ", ".join(str(part) for part in parts if part)


def versions(training: Mapping[str, Any]) -> str:
    """The versions of a run, in words, from its training.json."""
    return ", ".join(f"{name} {version}" for name, version in training.get("versions", {}).items())


@cache
def sizes(config: Path, seq_len: int) -> tuple[int, int]:
    """(parameters, FLOPs of a token) of a model that is never loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from hyperclone.hf.models import quiet
    from hyperclone.training import flops

    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.parent, local_files_only=True))
    return sum(p.numel() for p in model.parameters()), round(flops.per_token(model, seq_len))


class Timing:
    """Seconds of training steps until a number of tokens: evaluations, saving and start-up do not count."""

    def __init__(self, lines: Iterable[Mapping[str, Any]], after: Timing | None = None, *, at: float = 0) -> None:
        """Of the lines of a run; with `after`, also of the run that goes on from it when it has read `at` tokens."""
        self._after, self._end = after, at
        self._tokens, self._seconds = [0.0], [0.0]
        for line in lines:
            if line.get("tokens_per_second") and line["tokens"] > self._tokens[-1]:
                more = line["tokens"] - self._tokens[-1]
                self._tokens.append(line["tokens"])
                self._seconds.append(self._seconds[-1] + more / line["tokens_per_second"])

    def at(self, tokens: float) -> float:
        """Seconds; on the straight line between logs, and beyond the last at its speed."""
        if self._after is not None and tokens > self._end:
            return self.at(self._end) + self._after.at(tokens - self._end)
        logged, seconds = self._tokens, self._seconds
        for i in range(1, len(logged)):
            if tokens <= logged[i] or i == len(logged) - 1:
                share = (tokens - logged[i - 1]) / (logged[i] - logged[i - 1])
                return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])
        return 0.0


def _symmetry(lines: Iterable[Mapping[str, Any]]) -> list[LayerSymmetry]:
    """Cosines between copies with every evaluation, by layer."""
    found = []
    for line in lines:
        read = {name[len("read/") :]: value for name, value in line.get("anatomy", {}).items() if "read/" in name}
        found += layer_symmetry(line["tokens"], read)
    return found


def _examined(path: Path, tokens: int) -> tuple[list[LayerAnatomy], list[Spectrum]]:
    """Anatomy and spectra before and after training; empty for a run that was not examined."""
    if not (path / paths.ANATOMY).is_file():
        return [], []
    both = json.loads((path / paths.ANATOMY).read_text())
    anatomy: list[LayerAnatomy] = []
    spectra: list[Spectrum] = []
    for when, trained in (("start", 0), ("end", tokens)):
        anatomy += layer_means(trained, both[when]["tensors"])
        spectra += middle_spectra(trained, both[when]["tensors"])
    return anatomy, spectra
