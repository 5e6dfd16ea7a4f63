"""The commands of a study: what a person would type to do the same by hand, and the processes that run them.

Nothing is trained or grown in the study's own process. A failure stays with its run, memory is given back, several runs
share a machine, and each can be repeated from the command in its log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hyperclone.errors import NonFiniteLossError, StudyError
from hyperclone.options import flags
from hyperclone.planning.growth import Growth
from hyperclone.training.config import Training


def train(model: Path, output: Path, options: Mapping[str, Any], *, seed: int, scratch: bool) -> list[str]:
    """`hyperclone train`."""
    given = {**options, "output": str(output), "seed": seed, "from_scratch": scratch, "resume": True}
    return ["train", str(model), *flags(Training, given)]


def grow(source: Path, target: Path, growth: Growth, *, optimizer_state: Path | None, moments: str | None) -> list[str]:
    """`hyperclone grow`."""
    extra = [] if optimizer_state is None else ["--optimizer-state", str(optimizer_state), "--moments", str(moments)]
    return ["grow", str(source), str(target), *growth.options(), *extra]


class Diverged(StudyError):
    """A training ended because its loss was no longer a number."""


class Processes:
    """Runs commands, some at a time; stops them all when asked to.

    Attributes:
        stopped: whether `stop` was called.
    """

    def __init__(self, *, jobs: int | None, threads: int | None) -> None:
        """Start nothing; `run` starts a command.

        Args:
            jobs: commands at a time; by default one for each GPU, or one.
            threads: of each (OMP_NUM_THREADS); by default the cores are shared evenly where there is more than one job.
        """
        self.stopped = False
        self._jobs, self._threads = jobs, threads
        self._running: set[asyncio.subprocess.Process] = set()

    @cached_property
    def _gpus(self) -> int:
        """Of this machine; each command gets one of them. Counted when there is something to run: torch is imported."""
        import torch

        return torch.cuda.device_count()

    @cached_property
    def _slots(self) -> asyncio.Queue[int]:
        jobs = self._jobs or max(1, self._gpus)
        if self._threads is None and jobs > 1:
            self._threads = max(1, (os.cpu_count() or 1) // jobs)
        slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(jobs):
            slots.put_nowait(slot)
        return slots

    def stop(self) -> None:
        """Let every command finish its step and save; start no more."""
        self.stopped = True
        for process in self._running:
            process.send_signal(signal.SIGTERM)

    async def run(self, command: Sequence[str], log: Path, *, begin: Callable[[], None] | None = None) -> str:
        """Run `hyperclone COMMAND`; what it printed on standard output. `begin` is called when its turn comes.

        Raises:
            Interrupted: the study is being stopped.
            Diverged: it was a training whose loss was no longer a number.
            StudyError: the command failed otherwise; the message is its own.
        """
        slot = await self._slots.get()
        try:
            if self.stopped:
                raise Interrupted
            if begin is not None:
                begin()
            return await self._run(command, log, slot)
        finally:
            self._slots.put_nowait(slot)

    async def _run(self, command: Sequence[str], log: Path, slot: int) -> str:
        environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", COLUMNS="160")
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        if self._gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % self._gpus)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            stream.write(f"$ hyperclone {' '.join(command)}\n".encode())
            stream.flush()
            before = stream.tell()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hyperclone", *command, env=environment, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=stream,
                start_new_session=True,  # Ctrl-C reaches the study alone, which passes it on once
            )  # fmt: skip
            self._running.add(process)
            try:
                printed, _ = await process.communicate()
            finally:
                self._running.discard(process)
            stream.seek(0, os.SEEK_END)
            stream.write(printed)
        if process.returncode == 0:
            return printed.decode()
        if self.stopped:
            raise Interrupted
        messages = log.read_bytes()[before:].decode("utf-8", "replace")
        lines = [line.strip() for line in messages.splitlines() if line.strip()]
        failure = Diverged if process.returncode == NonFiniteLossError.exit_code else StudyError
        raise failure(
            f"`hyperclone {command[0]}` failed with exit code {process.returncode}",
            file=log,
            found="; ".join(lines[-5:])[-600:],
        )


class Interrupted(Exception):  # not an error: it was asked for
    """The study is being stopped."""
