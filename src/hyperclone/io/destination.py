"""The output directory: complete or absent, whatever happens, and a rerun resumes.

Everything is written to a hidden directory beside the target, synced, and renamed at the end, which is a single step
within a file system. A journal in it names the shards that are complete and synced; a rerun with the same plan and the
same source resumes after them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hyperclone.errors import DestinationError
from hyperclone.io import files, scratch

RECEIPT = "hyperclone.json"
_JOURNAL = "journal.jsonl"
_REPLACED = ".hyperclone-replaced"  # in an old output that a new one has replaced: it may be removed


class Destination:
    """A directory being built at `partial`, to become `target`.

    Attributes:
        target: its final path.
        partial: its path while it is being built.
        finished: shard files that an earlier run with the same fingerprint has completed.
    """

    def __init__(self, target: Path, *, source: Path, fingerprint: str, nbytes: int, overwrite: bool) -> None:
        """Check the target, and create the partial directory or resume the one of an earlier run.

        Args:
            target: the output directory.
            source: the source's directory, which is never written to.
            fingerprint: what the output's bytes depend on; only shards written under the same one are kept.
            nbytes: bytes that the output will take.
            overwrite: replace an earlier output of hyperclone.

        Raises:
            DestinationError: the target exists, is the source or inside it, is being written by another run, or does
                not fit on the disk.
        """
        self._appending = threading.Lock()
        self._check: Callable[[], None] = partial(check_target, target, source=source, overwrite=overwrite)
        self._check()
        self.target = target.resolve()  # a link itself stays; renaming stays within one file system
        self.partial, self._replaced = beside(self.target)
        # A run that was killed between its two renames has left the old output there, and no target.
        self._left_old = not self.target.exists() and files.exists(self._replaced / RECEIPT)
        self._made = missing_parents(self.target)
        with _os_errors("cannot create the output here", self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)
            if not (self.partial / _JOURNAL).exists() and any(self.partial.iterdir()):
                raise DestinationError(
                    "the directory in which this output would be built exists, and has no journal",
                    file=self.partial,
                    cure="remove it yourself if it is not needed",
                )
            self._journal = (self.partial / _JOURNAL).open("a+", encoding="utf-8", errors="replace")
        try:
            self._lock()
        except BaseException:
            self._journal.close()
            raise
        try:
            self._check()  # again: another run may have held the lock until now, and finished
            with _os_errors("cannot create the output here", self.partial):
                self.finished = self._resume(fingerprint)
                self._check_space(nbytes)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ended just now has removed the journal that we opened, so that a lock on it locks nothing.
            locked = os.path.samestat(os.fstat(self._journal.fileno()), os.stat(self.partial / _JOURNAL))
        except (BlockingIOError, FileNotFoundError):
            locked = False
        except OSError as error:
            raise DestinationError("cannot lock the output", file=self.partial, found=error.strerror) from None
        if not locked:
            raise DestinationError(
                "another run is writing this output", file=self.partial, cure="wait for it, or choose another name"
            )

    def _resume(self, fingerprint: str) -> frozenset[str]:
        """Keep the finished shards of an earlier run with this fingerprint; remove everything else."""
        self._journal.seek(0)
        lines = []
        for line in self._journal.read().splitlines():
            try:
                lines.append(json.loads(line))
            except (ValueError, RecursionError):
                break  # the run was killed while it wrote this line, so the shard is not finished
        kept = []
        if lines and lines[0] == {"fingerprint": fingerprint}:
            kept = [line for line in lines[1:] if self._is_finished(line)]
        finished = frozenset(line["shard"] for line in kept)
        self._clear(keep=finished)
        self._restart_journal([{"fingerprint": fingerprint}, *kept])
        return finished

    def _is_finished(self, line: Any) -> bool:
        match line:
            case {"shard": str(name), "bytes": int(nbytes)} if Path(name).name == name:
                file = self.partial / name
                return file.is_file() and not file.is_symlink() and file.stat().st_size == nbytes
        return False

    def _clear(self, *, keep: Collection[str] = ()) -> None:
        for entry in self.partial.iterdir():
            if entry.name != _JOURNAL and entry.name not in keep:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _restart_journal(self, lines: list[dict[str, Any]]) -> None:
        self._journal.seek(0)
        self._journal.truncate()
        for line in lines:
            self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        with self._appending:
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())

    def _check_space(self, nbytes: int) -> None:
        kept = sum((self.partial / file).stat().st_blocks * 512 for file in self.finished)
        free = shutil.disk_usage(self.partial).free + kept
        if nbytes > free:
            raise DestinationError(
                "not enough space on the disk",
                file=self.target.parent,
                found=f"{free / 1e9:.2f} GB free",
                expected=f"{nbytes / 1e9:.2f} GB",
                cure="free some space, choose another disk, or a smaller --dtype",
            )

    @contextmanager
    def shard(self, file: str, *, nbytes: int) -> Iterator[int]:
        """A file descriptor to write a shard of known size with; on exit it is synced and recorded as finished."""
        descriptor = os.open(self.partial / file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, nbytes)
            else:  # macOS
                os.ftruncate(descriptor, nbytes)
            yield descriptor
            os.fsync(descriptor)
        except BaseException:
            (self.partial / file).unlink()  # a rerun cannot use half a shard, and it may be large
            raise
        finally:
            os.close(descriptor)
        self._append({"shard": file, "bytes": nbytes})

    def write_text(self, file: str, text: str) -> None:
        """Write and sync a small file."""
        with _os_errors("writing the output failed", self.partial / file):
            files.write_text(self.partial / file, text)

    def carry(self, paths: list[Path], *, root: Path) -> None:
        """Copy files of the source, keeping their relative paths."""
        for file in paths:
            copy = self.partial / file.relative_to(root)
            with _os_errors("copying a file of the source failed", file), file.open("rb") as original:
                copy.parent.mkdir(exist_ok=True)
                with copy.open("wb") as stream:
                    shutil.copyfileobj(original, stream)
                    stream.flush()
                    os.fsync(stream.fileno())

    def publish(self) -> None:
        """Rename the finished directory to its target. An old output there is removed only afterwards."""
        self._check()  # again: hours may have passed, and somebody may have created the target
        old = self._replaced
        with _os_errors("the finished output cannot be renamed to its target", self.target):
            scratch.clear(self.partial)  # of a proof of this run whose removal failed, or of one that was killed
            _sync_directory(self.partial)
            replaces = self.target.exists()
            if replaces:
                if old.exists():
                    _remove_replaced(old)  # left by a run that was killed while it removed it: `_check` has looked
                self.target.rename(old)
                (old / _REPLACED).touch()
            try:
                self.partial.rename(self.target)
            except OSError:
                if replaces:
                    (old / _REPLACED).unlink()
                    old.rename(self.target)
                raise
            # Only now: had the run been killed before, a rerun would still find every shard finished.
            (self.target / _JOURNAL).unlink()
            _sync_directory(self.target)
            _sync_directory(self.target.parent)
        self._journal.close()
        if replaces or self._left_old:
            with suppress(OSError):
                _remove_replaced(old)
                return
            try:
                _remove_replaced(old)  # what failed for a moment need not fail again
            except OSError as error:
                raise DestinationError(
                    "the output is complete, but the old one that it replaced cannot be removed", file=old,
                    found=error.strerror, cure="remove it yourself",
                ) from None  # fmt: skip

    def forget(self) -> None:
        """Count every finished shard as unfinished: a rerun starts over."""
        self._restart_journal([])

    def close(self) -> None:
        """Release the lock. Finished shards stay for a rerun; without any, what was made for them is removed."""
        if self._journal.closed:
            return
        with suppress(OSError):
            if [entry.name for entry in self.partial.iterdir()] == [_JOURNAL]:
                (self.partial / _JOURNAL).unlink()
                self.partial.rmdir()
                for directory in reversed(self._made):
                    directory.rmdir()
        self._journal.close()


def missing_parents(target: Path) -> tuple[Path, ...]:
    """The directories above a target that do not exist and will be made with it, the outermost first.

    A path that cannot be resolved has none: `check_target` refuses it.
    """
    try:
        return tuple(reversed([parent for parent in target.resolve().parents if not parent.exists()]))
    except (OSError, RuntimeError, ValueError):
        return ()


def check_target(target: Path, *, source: Path, overwrite: bool) -> None:
    """Raise unless the target may be written.

    Raises:
        DestinationError: it exists, or it and the source are the same or inside each other, or something else is where
            an old output would be kept.
    """
    try:
        target, source = target.resolve(), source.resolve()
        exists = target.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, not accessible, a circle of links
        raise DestinationError("no output can be written here", file=target, found=error) from None
    if target == source:
        raise DestinationError("the destination is the source", file=target, cure="choose another directory")
    if source in target.parents:
        raise DestinationError("the destination is inside the source", file=target, cure="choose another directory")
    if target in source.parents:
        raise DestinationError("the source is inside the destination", file=target, cure="choose another directory")
    if any(path == source or path in source.parents for path in beside(target)):
        raise DestinationError(
            "the source is in the directory in which this output would be built",
            file=source,
            cure="choose another directory",
        )
    if not exists:
        return
    if not target.is_dir():
        raise DestinationError("the destination is a file", file=target, expected="a directory")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise DestinationError(
            "the destination exists", file=target, cure="choose another directory, or pass --overwrite"
        )
    if not (target / RECEIPT).is_file():
        raise DestinationError(
            "the destination was not written by hyperclone, so it is not replaced",
            file=target,
            expected=f"a directory with {RECEIPT}",
            cure="remove it yourself if it is not needed",
        )
    _, old = beside(target)
    if os.path.lexists(old) and not files.exists(old / _REPLACED):
        raise DestinationError(
            "the directory in which the old output would be kept until the new one is there exists",
            file=old,
            cure="remove or rename it yourself",
        )


def beside(target: Path) -> tuple[Path, Path]:
    """Where an output is built, and where an old one is kept until the new one has replaced it."""
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.replaced")


def _remove_replaced(old: Path) -> None:
    """Remove an old output; the file that says that it may be removed goes last."""
    if not old.exists():
        return
    for entry in old.iterdir():
        if entry.name != _REPLACED:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (old / _REPLACED).unlink(missing_ok=True)
    old.rmdir()


@contextmanager
def _os_errors(problem: str, file: Path) -> Iterator[None]:
    """Raise DestinationError for what the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise DestinationError(
            problem,
            file=file,
            found=error.strerror or error,
            cure="fix that, then rerun the same command to resume: finished files are kept",
        ) from None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
