"""The trainings of a study: each a process, with a directory and a log beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hyperclone.io.files import write_text
from hyperclone.planning.growth import Growth
from hyperclone.study import commands, tables
from hyperclone.study.commands import Processes
from hyperclone.study.progress import Began, OnEvent
from hyperclone.training import checkpoints, metrics, resume


async def train(
    processes: Processes, model: Path, options: Mapping[str, Any], *, seed: int, scratch: bool, began: Began,
    on_event: OnEvent, growth: Growth | None = None,
) -> None:  # fmt: skip
    """Train a model, or resume its training.

    Args:
        processes: that run it.
        model: directory of the model.
        options, seed, scratch: of `hyperclone train`; `scratch` for random weights.
        began: the event for when its turn comes.
        on_event: called with it.
        growth: of a model that is grown on the way.

    Raises:
        Interrupted: the study is being stopped.
        StudyError: it failed.
    """
    directory = began.path
    directory.parent.mkdir(parents=True, exist_ok=True)
    begun = [directory, *(directory / stage for stage in resume.STAGES)]
    if directory.is_dir() and not any((one / resume.RECORD_FILE).exists() for one in begun):
        shutil.rmtree(directory)  # nothing of it can be resumed
    if growth is not None:
        model = _run_file(directory.with_name(f"{directory.name}.toml"), model, growth)
    command = commands.train(model, directory, options, seed=seed, scratch=scratch)
    await processes.run(command, log_of(directory), begin=lambda: on_event(began))


def _run_file(file: Path, model: Path, growth: Growth) -> Path:
    """A run file with the options that a command line cannot have."""
    asked = {one.name: value for one in fields(Growth) if (value := getattr(growth, one.name)) != one.default}
    lines = [f"model = {json.dumps(str(model))}", "", "[grow]"]
    write_text(file, "\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in asked.items())]) + "\n")
    return file


def log_of(directory: Path) -> Path:
    """The log beside a directory: its commands, and what they printed."""
    return directory.with_name(f"{directory.name}.log")


def has_weights(directory: Path) -> bool:
    """Whether a directory holds a model."""
    return any(directory.glob("*.safetensors"))


def final_loss(directory: Path) -> float | None:
    """The held-out loss of the model in a directory, as a table shows it; None if it has none, or that is not known."""
    loss = metrics.last_loss(directory) if has_weights(directory) else None
    return None if loss is None else tables.rounded(loss)


def forget_checkpoints(directory: Path) -> None:
    """Delete the checkpoints of a finished run, and a model before its training, which are of no more use."""
    small, grown = (directory / stage for stage in resume.STAGES)
    for _, checkpoint in (*checkpoints.every(directory), *checkpoints.every(small)):
        shutil.rmtree(checkpoint, ignore_errors=True)
    shutil.rmtree(grown, ignore_errors=True)
