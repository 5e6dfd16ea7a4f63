"""Threads, slices and bytes: moving weights between disk and memory in bounded pieces.

A thread takes one tensor at a time and works through it in slices of rows, so only a few slices for each thread are
in memory, whatever the model's size.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from hyperclone.errors import DestinationError, OptionError
from hyperclone.io import files
from hyperclone.io.destination import Destination
from hyperclone.io.shards import Shard
from hyperclone.io.source import Weights
from hyperclone.io.tensor_files import row_count

if TYPE_CHECKING:
    from torch import Tensor

    from hyperclone.io.buffers import Buffers
    from hyperclone.io.tensor_files import TensorFiles

_T = TypeVar("_T")
SLICE_BYTES = 16 << 20  # of output, in each thread
Progress = Callable[[str, int, int], None]  # (stage, units done so far, units in all)


def slices(shape: tuple[int, ...], nbytes: int) -> Iterator[range]:
    """Ranges of rows of about SLICE_BYTES each."""
    count = row_count(shape)
    step = max(1, count * SLICE_BYTES // max(nbytes, 1))
    for start in range(0, count, step):
        yield range(start, min(start + step, count))


def raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes as stored."""
    import torch

    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy().data).cast("B")


def digest(model: Weights | TensorFiles, name: str, buffers: Buffers | None = None) -> str:
    """SHA-256 of a stored tensor's bytes."""
    entry, hashed = model.entries[name], hashlib.sha256()
    for rows in slices(entry.shape, entry.nbytes):
        hashed.update(raw(model.read(name, rows.start, rows.stop, buffers=buffers)))
    return hashed.hexdigest()


class Meter:
    """Adds up the work of several threads for a progress callback."""

    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self.stage, self.total, self.progress = stage, total, progress
        self.done = 0
        self._lock = threading.Lock()
        self.add(0)

    def add(self, units: int) -> None:
        """Report more work done."""
        with self._lock:
            self.done += units
            if self.progress:
                self.progress(self.stage, self.done, self.total)


def write_shards(
    shards: Sequence[Shard],
    target: Destination,
    pieces: Callable[[str], Iterable[Tensor]],
    *,
    stage: str,
    threads: int | None,
    progress: Progress | None,
) -> None:
    """Write every shard that is not finished yet.

    Args:
        shards: laid out.
        target: where they go.
        pieces: the content of a tensor by name, in stored order; called in several threads at once. A piece has been
            written when the next one is asked for.
        stage: the name of this work for `progress`.

    Raises:
        DestinationError: the disk refused a write.
    """
    meter = Meter(stage, sum(shard.nbytes for shard in shards), progress)
    meter.add(sum(shard.nbytes for shard in shards if shard.file in target.finished))
    writing = [_ShardWriter(shard, target, meter) for shard in shards if shard.file not in target.finished]

    def job(shard: _ShardWriter, name: str | None) -> None:
        with shard.descriptor() as descriptor:
            if name is None:
                shard.write(memoryview(shard.shard.header), descriptor, 0)
                return
            position = shard.shard.offsets[name]
            for piece in pieces(name):
                start, position = position, shard.write(raw(piece), descriptor, position)
                files.start_writing_out(descriptor, start, position - start)

    jobs = [functools.partial(job, shard, name) for shard in writing for name in [None, *shard.shard.largest_first]]
    try:
        with worker_pool(threads) as pool:
            run_all(pool, lambda run: run(), jobs)
    except BaseException as error:
        for shard in writing:
            shard.abandon(error)
        raise


class _ShardWriter:
    """A shard that several threads write: the first opens it, and the last one syncs it while others go on."""

    def __init__(self, shard: Shard, target: Destination, meter: Meter) -> None:
        self.shard, self.target, self.meter = shard, target, meter
        self._file: AbstractContextManager[int] | None = None
        self._descriptor = -1
        self._left = 1 + len(shard.offsets)
        self._lock = threading.Lock()

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """The open file for one part of the shard, which is complete on exit.

        Raises:
            DestinationError: the disk refused a write.
        """
        try:
            with self._lock:
                if self._file is None:
                    file = self.target.shard(self.shard.file, nbytes=self.shard.nbytes)
                    self._descriptor, self._file = file.__enter__(), file
            yield self._descriptor
            with self._lock:
                self._left -= 1
                complete = not self._left
            if complete:
                self._file.__exit__(None, None, None)
        except OSError as error:
            raise DestinationError(
                "writing the output failed",
                file=self.target.partial / self.shard.file,
                found=error.strerror or error,
                cure="fix that, then rerun the same command to resume: finished files are kept",
            ) from None

    def write(self, data: memoryview, descriptor: int, position: int) -> int:
        """Write all of `data`; returns the position after it."""
        while data:
            count = os.pwrite(descriptor, data, position)
            data, position = data[count:], position + count
            self.meter.add(count)
        return position

    def abandon(self, error: BaseException) -> None:
        """Remove the file if it is not complete; no thread writes it any more."""
        if self._file is not None and self._left:
            with suppress(OSError):  # what cannot be removed is removed by the next run
                self._file.__exit__(type(error), error, error.__traceback__)


@contextmanager
def worker_pool(threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that each run torch on one core; torch's own setting is restored afterwards."""
    import torch

    if threads is not None and threads < 1:
        raise OptionError("too few threads", field="threads", found=threads, expected="1 or more")
    count = threads or min(8, max(2, os.cpu_count() or 1))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="hyperclone", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def run_all(pool: ThreadPoolExecutor, job: Callable[[_T], None], items: Iterable[_T]) -> None:
    """Run a job for every item in parallel; the first error cancels those that have not started.

    When this returns or raises, also for an interruption, no job is running any more: their files can be closed.
    """
    futures = [pool.submit(job, item) for item in items]
    try:
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
    for future in finished:
        future.result()
