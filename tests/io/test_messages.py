"""Why an output is not written, word for word."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hyperclone.errors import DestinationError
from hyperclone.io.destination import RECEIPT, Destination, check_target
from tests.helpers.messages import Refusal, check_refusal


def file(path: Path) -> Path:
    """An empty file, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def check(target: Path, *, source: Path | None = None, overwrite: bool = False) -> None:
    """Check a target of a source elsewhere."""
    check_target(target, source=source or target.with_name("source"), overwrite=overwrite)


def build(target: Path, *, nbytes: int = 0, overwrite: bool = False) -> Destination:
    """Start an output."""
    source = target.with_name("source")
    return Destination(target, source=source, fingerprint="one", nbytes=nbytes, overwrite=overwrite)


def failing(owner: Any, name: str, call: Callable[[], object], *, error: OSError | None = None) -> None:
    """Call something while one function of the operating system fails."""

    def fail(*_: object, **__: object) -> None:
        raise error or OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, fail)
        call()


def without_space(target: Path) -> None:
    """Start an output of 2.515 GB where 1.235 GB are free."""
    with pytest.MonkeyPatch.context() as patched:
        usage = shutil.disk_usage(target.parent)
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_235_000_000))
        build(target, nbytes=2_515_000_000)


def at_the_same_time(target: Path) -> None:
    """Start an output that another run is writing."""
    with closing(build(target)):
        build(target)


def started(target: Path, action: Callable[[Destination], object], *, replaces: bool = False) -> None:
    """Start an output, also one that replaces an earlier one, and do something with it."""
    if replaces:
        file(target / RECEIPT)
    with closing(build(target, overwrite=replaces)) as output:
        action(output)


REFUSALS: dict[str, Refusal] = {
    "a path that cannot be resolved": Refusal(
        lambda tmp: failing(Path, "exists", lambda: check(tmp / "out"), error=OSError("too long")), DestinationError,
        "no output can be written here", {"file": "TMP/out", "found": "too long"}),
    "the source": Refusal(lambda tmp: check(tmp / "out", source=tmp / "out"), DestinationError,
        "the destination is the source", {"file": "TMP/out", "cure": "choose another directory"}),
    "inside the source": Refusal(lambda tmp: check(tmp / "source/a/out", source=tmp / "source"), DestinationError,
        "the destination is inside the source", {"file": "TMP/source/a/out", "cure": "choose another directory"}),
    "around the source": Refusal(lambda tmp: check(tmp / "out", source=tmp / "out/source"), DestinationError,
        "the source is inside the destination", {"file": "TMP/out", "cure": "choose another directory"}),
    "the source where the output would be built": Refusal(lambda tmp: check(tmp / "out", source=tmp / ".out.partial"),
        DestinationError, "the source is in the directory in which this output would be built",
        {"file": "TMP/.out.partial", "cure": "choose another directory"}),
    "the source where the old output would be kept": Refusal(
        lambda tmp: check(tmp / "out", source=tmp / ".out.replaced/source"), DestinationError,
        "the source is in the directory in which this output would be built",
        {"file": "TMP/.out.replaced/source", "cure": "choose another directory"}),
    "a file": Refusal(lambda tmp: check(file(tmp / "out")), DestinationError, "the destination is a file",
        {"file": "TMP/out", "expected": "a directory"}),
    "a directory that is not empty": Refusal(lambda tmp: check(file(tmp / "out/thesis.txt").parent), DestinationError,
        "the destination exists", {"file": "TMP/out", "cure": "choose another directory, or pass --overwrite"}),
    "a directory of somebody else's": Refusal(lambda tmp: check(file(tmp / "out/thesis.txt").parent, overwrite=True),
        DestinationError, "the destination was not written by hyperclone, so it is not replaced",
        {"file": "TMP/out", "expected": "a directory with hyperclone.json",
         "cure": "remove it yourself if it is not needed"}),
    "no place for the old output": Refusal(
        lambda tmp: check(file(file(tmp / ".out.replaced").with_name("out") / RECEIPT).parent, overwrite=True),
        DestinationError, "the directory in which the old output would be kept until the new one is there exists",
        {"file": "TMP/.out.replaced", "cure": "remove or rename it yourself"}),
    "a directory of somebody else's where the output would be built": Refusal(
        lambda tmp: build(file(tmp / ".out.partial/thesis.txt").parent.with_name("out")), DestinationError,
        "the directory in which this output would be built exists, and has no journal",
        {"file": "TMP/.out.partial", "cure": "remove it yourself if it is not needed"}),
    "below a file": Refusal(lambda tmp: build(file(tmp / "file") / "out"), DestinationError,
        "cannot create the output here",
        {"file": "TMP/file/.out.partial", "found": "Not a directory",
         "cure": "fix that, then rerun the same command to resume: finished files are kept"}),
    "a disk that fails at the start": Refusal(lambda tmp: failing(os, "fsync", lambda: build(tmp / "out")),
        DestinationError, "cannot create the output here",
        {"file": "TMP/.out.partial", "found": "Input/output error",
         "cure": "fix that, then rerun the same command to resume: finished files are kept"}),
    "a refusal without a number": Refusal(
        lambda tmp: failing(os, "fsync", lambda: build(tmp / "out"), error=OSError("no reason")), DestinationError,
        "cannot create the output here",
        {"file": "TMP/.out.partial", "found": "no reason",
         "cure": "fix that, then rerun the same command to resume: finished files are kept"}),
    "a lock that is not to be had": Refusal(lambda tmp: failing(fcntl, "flock", lambda: build(tmp / "out")),
        DestinationError, "cannot lock the output", {"file": "TMP/.out.partial", "found": "Input/output error"}),
    "another run": Refusal(lambda tmp: at_the_same_time(tmp / "out"), DestinationError,
        "another run is writing this output",
        {"file": "TMP/.out.partial", "cure": "wait for it, or choose another name"}),
    "no space": Refusal(lambda tmp: without_space(tmp / "out"), DestinationError, "not enough space on the disk",
        {"file": "TMP", "found": "1.24 GB free", "expected": "2.52 GB",
         "cure": "free some space, choose another disk, or a smaller --dtype"}),
    "a text that is not written": Refusal(
        lambda tmp: started(tmp / "out", lambda out: failing(os, "fsync", lambda: out.write_text("a.json", "{}"))),
        DestinationError, "writing the output failed",
        {"file": "TMP/.out.partial/a.json", "found": "Input/output error",
         "cure": "fix that, then rerun the same command to resume: finished files are kept"}),
    "a file that is not copied": Refusal(
        lambda tmp: started(tmp / "out", lambda out: out.carry([tmp / "source/a.txt"], root=tmp / "source")),
        DestinationError, "copying a file of the source failed",
        {"file": "TMP/source/a.txt", "found": "No such file or directory",
         "cure": "fix that, then rerun the same command to resume: finished files are kept"}),
    "a name that is not given": Refusal(
        lambda tmp: started(tmp / "out", lambda out: failing(os, "rename", out.publish)), DestinationError,
        "the finished output cannot be renamed to its target",
        {"file": "TMP/out", "found": "Input/output error",
         "cure": "fix that, then rerun the same command to resume: finished files are kept"}),
    "an old output that is not removed": Refusal(
        lambda tmp: started(tmp / "out", lambda out: failing(os, "rmdir", out.publish), replaces=True),
        DestinationError, "the output is complete, but the old one that it replaced cannot be removed",
        {"file": "TMP/.out.replaced", "found": "Input/output error", "cure": "remove it yourself"}),
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_is_told_with_place_reason_and_cure(refusal: Refusal, tmp_path: Path) -> None:
    check_refusal(refusal, tmp_path)
