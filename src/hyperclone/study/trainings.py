"""The trainings of a study: each a process, with a directory and a log beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperclone.study import commands, tables
from hyperclone.study.commands import Processes
from hyperclone.study.progress import Began, OnEvent
from hyperclone.training import checkpoints, metrics, resume


async def train(
    processes: Processes, model: Path, options: Mapping[str, Any], *, seed: int, scratch: bool, began: Began,
    on_event: OnEvent,
) -> None:  # fmt: skip
    """Train a model, or resume its training.

    Args:
        processes: that run it.
        model: directory of the model.
        options, seed, scratch: of `hyperclone train`; `scratch` for random weights.
        began: the event for when its turn comes.
        on_event: called with it.

    Raises:
        Interrupted: the study is being stopped.
        StudyError: it failed.
    """
    directory = began.path
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.is_dir() and not (directory / resume.RECORD_FILE).exists():
        shutil.rmtree(directory)  # nothing of it can be resumed
    command = commands.train(model, directory, options, seed=seed, scratch=scratch)
    await processes.run(command, log_of(directory), begin=lambda: on_event(began))


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
    """Delete the checkpoints of a finished run, which are of no more use."""
    for _, checkpoint in checkpoints.every(directory):
        shutil.rmtree(checkpoint, ignore_errors=True)
