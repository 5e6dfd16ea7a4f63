"""Directories for a while: gone when they are not needed any more, also if an earlier process was killed in one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = ".hyperclone-"


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A new directory, removed at the end. Those that killed processes of this user have left are removed as well.

    Each is locked while it is in use, and the lock ends with its process.

    Args:
        parent: where it is made; by default the directory for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_abandoned(parent)
    directory, descriptor = _locked(parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def clear(parent: Path) -> None:
    """Remove every scratch directory in a directory that nobody else uses: one whose removal failed is still there.

    Raises:
        OSError: one cannot be removed.
    """
    for directory in parent.glob(f"{_PREFIX}*"):
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            shutil.rmtree(directory)  # what failed for a moment need not fail again


def _locked(parent: Path) -> tuple[Path, int]:
    """A new directory, and a descriptor that holds its lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        descriptor = os.open(directory, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if directory.exists():
            return directory, descriptor
        os.close(descriptor)  # another process took it for abandoned before it was locked


def _remove_abandoned(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)
