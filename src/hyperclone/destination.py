"""The output directory: complete or absent, whatever happens, and a rerun continues.

Everything is written to a hidden directory beside the target, synced, and renamed at the end, which on one file
system is a single step. A journal in it names the shards that are finished and safely on disk; a rerun with the same
plan and the same source skips them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperclone.errors import DestinationError

RECEIPT = "hyperclone.json"
_JOURNAL = "journal.jsonl"


class Destination:
    """A directory being built at `partial`, to become `target`.

    Attributes:
        target: where it will be.
        partial: where it is built.
        finished: shard files that an earlier run with the same fingerprint has completed.
    """

    def __init__(self, target: Path, *, source: Path, fingerprint: str, nbytes: int, overwrite: bool) -> None:
        """Check the place and open (or take up again) the partial directory.

        Raises:
            DestinationError: exists, is the source or inside it, is being written by another run, or does not fit.
        """
        self.target = target.absolute()
        self.partial = self.target.with_name(f".{self.target.name}.partial")
        check_place(self.target, source=source, overwrite=overwrite)
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._journal = (self.partial / _JOURNAL).open("a+")
        except OSError as error:
            raise DestinationError("cannot create the output here", file=self.partial, found=error.strerror) from None
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DestinationError(
                "another run is writing this output", file=self.partial, cure="wait for it, or choose another name"
            ) from None
        self.finished = self._take_up(fingerprint)
        self._check_space(nbytes)

    def _take_up(self, fingerprint: str) -> frozenset[str]:
        self._journal.seek(0)
        lines = []
        for line in self._journal.read().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break  # the run was cut off while writing this line; what it spoke of is not finished
        if lines and lines[0] == {"fingerprint": fingerprint}:
            self._restart_journal(lines)
            return frozenset(
                line["shard"]
                for line in lines[1:]
                if (self.partial / line["shard"]).is_file()
                and (self.partial / line["shard"]).stat().st_size == line["bytes"]
            )
        for entry in self.partial.iterdir():  # another plan's leftovers
            if entry.name != _JOURNAL:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._restart_journal([{"fingerprint": fingerprint}])
        return frozenset()

    def _restart_journal(self, lines: list[dict[str, Any]]) -> None:
        self._journal.seek(0)
        self._journal.truncate()
        for line in lines:
            self._log(line)

    def _log(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _check_space(self, nbytes: int) -> None:
        there = sum(entry.stat().st_blocks * 512 for entry in self.partial.iterdir() if entry.is_file())
        free = shutil.disk_usage(self.partial).free + there
        if nbytes > free:
            self.discard()
            raise DestinationError(
                "not enough room on the disk",
                file=self.target.parent,
                found=f"{free / 1e9:.2f} GB free",
                expected=f"{nbytes / 1e9:.2f} GB",
                cure="free some space, choose another disk, or a smaller --dtype",
            )

    @contextmanager
    def shard(self, file: str, *, nbytes: int) -> Iterator[int]:
        """A file descriptor to write a shard of known size; on leaving it is synced and noted as finished."""
        descriptor = os.open(self.partial / file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, nbytes)
            else:  # macOS
                os.ftruncate(descriptor, nbytes)
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._log({"shard": file, "bytes": nbytes})

    def write_text(self, file: str, text: str) -> None:
        """Write and sync a small file."""
        with (self.partial / file).open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    def carry(self, files: list[Path], *, root: Path) -> None:
        """Copy files of the source, keeping their relative places."""
        for file in files:
            copy = self.partial / file.relative_to(root)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)

    def publish(self) -> None:
        """Give the finished directory its name. An old output with that name is removed only afterwards."""
        (self.partial / _JOURNAL).unlink()
        _sync_directory(self.partial)
        old = self.target.with_name(f".{self.target.name}.replaced")
        if old.exists():
            shutil.rmtree(old)
        if self.target.exists():
            self.target.rename(old)
        self.partial.rename(self.target)
        _sync_directory(self.target.parent)
        self.close()
        shutil.rmtree(old, ignore_errors=True)

    def forget(self) -> None:
        """Finished shards count as unfinished from now on: a rerun starts anew."""
        self._restart_journal([])

    def discard(self) -> None:
        """Remove everything that was built."""
        self.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def close(self) -> None:
        """Let go of the lock; what was built stays for a rerun."""
        self._journal.close()


def check_place(target: Path, *, source: Path, overwrite: bool) -> None:
    """The target may be written.

    Raises:
        DestinationError: it exists, or it and the source are one or inside each other.
    """
    target, source = target.resolve(), source.resolve()
    if target == source:
        raise DestinationError("the destination is the source", file=target, cure="choose another directory")
    if source in target.parents:
        raise DestinationError("the destination is inside the source", file=target, cure="choose another directory")
    if target in source.parents:
        raise DestinationError("the source is inside the destination", file=target, cure="choose another directory")
    if not target.exists():
        return
    if not target.is_dir():
        raise DestinationError("the destination is a file", file=target, expected="a directory to be made")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise DestinationError(
            "the destination exists", file=target, cure="choose another directory, or pass --overwrite"
        )
    if not (target / RECEIPT).is_file():
        raise DestinationError(
            "the destination was not made by hyperclone, so it is not replaced",
            file=target,
            expected=f"a directory with {RECEIPT}",
            cure="remove it yourself if it is not needed",
        )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
