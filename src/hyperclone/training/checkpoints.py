"""Checkpoints that are complete or absent.

Trainer writes a checkpoint file by file under its final name, so a full disk or a kill would leave half of one for
the next run to pick up. Here it is written in a hidden directory, synced, and renamed to `checkpoint-N`; a failure
removes what there is of it. Whatever bears that name is whole, and older ones are removed only after a newer one has
its name.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hyperclone.errors import DestinationError

PARTIAL = ".saving"
_NAME = re.compile(r"checkpoint-(\d+)")


def every(output: Path) -> list[tuple[int, Path]]:
    """(step, directory) of all checkpoints, oldest first."""
    found = [(int(m[1]), p) for p in output.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return sorted(found)


def last(output: Path) -> Path | None:
    """The newest checkpoint."""
    found = every(output)
    return found[-1][1] if found else None


@contextmanager
def writing(output: Path, *, main: bool) -> Iterator[Path]:
    """The hidden directory to write into; what goes wrong in there is told as a full or failing disk.

    Args:
        output: where the finished directory will be.
        main: this process clears up after a failure.

    Raises:
        DestinationError: it could not be written.
    """
    partial = output / PARTIAL
    try:
        yield partial
    except BaseException as error:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        kept = last(output)
        raise DestinationError(
            "a checkpoint could not be written",
            file=output,
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            expected=f"{shutil.disk_usage(output).free / 1e9:.2f} GB are free on this disk",
            cure=(
                f"make room and run again with --resume: {kept.name} is whole" if kept else "make room and run again"
            ),
        ) from error


def clear(output: Path) -> None:
    """Remove what a run that was killed has left half-written."""
    shutil.rmtree(output / PARTIAL, ignore_errors=True)


def publish(partial: Path, target: Path) -> None:
    """Sync a finished directory and give it its name."""
    for directory, _, files in os.walk(partial):
        for name in files:
            _sync(Path(directory) / name)
        _sync(Path(directory))
    if target.exists():  # of this very step, written by an earlier run
        shutil.rmtree(target)
    partial.rename(target)
    _sync(target.parent)


def rotate(output: Path, keep: int) -> None:
    """Remove all but the `keep` newest; 0 keeps all."""
    for _, path in every(output)[: -keep or None] if keep else []:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot sync directories
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
