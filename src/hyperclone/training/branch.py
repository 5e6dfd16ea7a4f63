"""Runs that begin from the stable phase of another run, and so cost only what is left of them.

With the schedules wsd and constant, a run computes the same until its learning rate decays, whatever its length. So
runs of several lengths may share their first steps: each branches off from a checkpoint of one of them (`train
--branch-from RUN`), and has the weights, to the bit, that it would have if it were trained from the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperclone.errors import TrainingError
from hyperclone.io.files import user_path
from hyperclone.training import checkpoints, resume
from hyperclone.training.config import Training
from hyperclone.training.lr_schedule import stable_until, warmup_steps

_FREE = ("steps", "schedule", "decay", "min_lr", "warmup")  # in which a branch may differ; the warm-up is compared


def starting_checkpoint(training: Training, output: Path, record: dict[str, Any]) -> Path | None:
    """The checkpoint that a run goes on from: its own last one, else one of the run that it branches off from.

    Args:
        training: the request.
        output: directory of the run, there or not.
        record: of the run (`resume.make_record`). Of a dry run it may lack what is not known yet.

    Raises:
        DestinationError: the output holds something else, or a run that was not to be resumed.
        TrainingError: one of the two directories holds a run with other settings.
    """
    own = resume.checkpoint_to_resume(output, record, resume=training.resume)
    if own is not None or training.branch_from is None:
        return own
    return checkpoint_to_branch_from(user_path(training.branch_from), record)


def checkpoint_to_branch_from(run: Path, record: dict[str, Any]) -> Path:
    """The newest checkpoint of a run before its learning rate decays, and before the branch's does.

    Args:
        run: directory of the other run; nothing in it is changed.
        record: of the branch (`resume.make_record`). Of a dry run it may lack what is not known yet.

    Raises:
        TrainingError: there is no run, or one that is not the same until then, or it kept no such checkpoint.
    """
    if not (run / resume.RECORD_FILE).is_file():
        raise TrainingError("no training run is here", file=run, field="branch_from", expected=resume.RECORD_FILE)
    theirs = resume.curve(run)
    ours = {**theirs, **resume.curve_of(record)}  # what is not known yet may be as there
    for field, value in ours.items():
        if field not in _FREE and theirs.get(field) != value:
            raise TrainingError(
                "that run has other settings, so this one cannot begin as it did",
                file=run / resume.RECORD_FILE, field=field, found=value, expected=theirs.get(field),
                cure="repeat its settings, or leave --branch-from out",
            )  # fmt: skip
    if warmup_steps(theirs["warmup"], theirs["steps"]) != warmup_steps(ours["warmup"], ours["steps"]):
        raise TrainingError("the warm-ups of the two runs differ", file=run / resume.RECORD_FILE, field="warmup",
                            found=ours["warmup"], expected="the same number of steps",
                            cure="give --warmup as a number of steps in both")  # fmt: skip
    stable = min(stable_until(one["schedule"], steps=one["steps"], decay=one["decay"]) for one in (theirs, ours))
    if stable == 0:
        raise TrainingError("its learning rate has no stable phase", file=run / resume.RECORD_FILE, field="schedule",
                            found=f"{theirs['schedule']} there, {ours['schedule']} here", expected="wsd or constant",
                            cure="--schedule wsd in both")  # fmt: skip
    kept = [path for step, path in checkpoints.every(run) if 0 < step <= stable]
    if not kept:
        found = ", ".join(path.name for _, path in checkpoints.every(run)) or "no checkpoints"
        raise TrainingError(
            "no checkpoint is left from before the learning rate decays", file=run, field="branch_from", found=found,
            expected=f"one of step {stable} or earlier",
            cure="train that run with --keep 0, which keeps all checkpoints, and --save-every to have one there",
        )  # fmt: skip
    return kept[-1]
