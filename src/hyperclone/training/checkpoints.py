"""Checkpoints that are complete or absent.

Trainer writes a checkpoint file by file under its final name, so a full disk or a kill would leave a partial one for
the next run to resume from. Here it is written to a hidden directory, synced, and renamed to `checkpoint-N`; if that
fails, it is removed. So whatever has such a name is complete, and older ones are removed only after a newer one has
its name.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hyperclone.errors import DestinationError, reason_with_class

PARTIAL = ".saving"
_NAME = re.compile(r"checkpoint-(\d+)")


def every(output: Path) -> list[tuple[int, Path]]:
    """(step, directory) of all checkpoints, oldest first."""
    checkpoints = [(int(m[1]), p) for p in output.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return sorted(checkpoints)


def last(output: Path) -> Path | None:
    """The newest checkpoint."""
    checkpoints = every(output)
    return checkpoints[-1][1] if checkpoints else None


@contextmanager
def writing(output: Path, *, main: bool) -> Iterator[Path]:
    """The hidden directory to write a checkpoint into. Errors in the block become a `DestinationError`.

    Args:
        output: where the finished directory will be.
        main: this process removes a partial checkpoint.

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
            found=reason_with_class(error),
            expected=f"{shutil.disk_usage(output).free / 1e9:.2f} GB are free on this disk",
            cure=(
                f"free some space and rerun with --resume: {kept.name} is whole"
                if kept
                else "free some space and rerun"
            ),
        ) from error


def clear(output: Path) -> None:
    """Remove a partial checkpoint that a killed run left behind."""
    shutil.rmtree(output / PARTIAL, ignore_errors=True)


def publish(partial: Path, target: Path) -> None:
    """Sync a finished directory and give it its name."""
    for directory, _, files in os.walk(partial):
        for name in files:
            _sync(Path(directory) / name)
        _sync(Path(directory))
    if target.exists():  # of the same step, by an earlier run
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
