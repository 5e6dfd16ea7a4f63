"""Studies: arms x seeds with one data order, and what came of them.

read a TOML file (config.py) -> what each run is, as a key (run_keys.py) -> run it (runner.py, commands.py)
-> where it lies (paths.py), what came of it (collect.py, records.py) -> tables (results.py) with speed-ups
(speedup.py) -> report
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from hyperclone.errors import DestinationError, StudyError
from hyperclone.study import records, results
from hyperclone.study.commands import Interrupted, Processes
from hyperclone.study.config import Study
from hyperclone.study.config_file import read
from hyperclone.study.paths import runs_of
from hyperclone.study.progress import Event, Progress, Run
from hyperclone.study.records import SourceRecord
from hyperclone.study.runner import Runner

__all__ = ["Progress", "Run", "Study", "finished", "read", "remake", "run", "runs_of"]


def run(
    file: str | os.PathLike[str] | Study,
    *,
    output: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    watch: Callable[[Event], None] | None = None,
) -> Progress:
    """Run a study, or what is left of it.

    Args:
        file: the study (config.py), or what was read from it.
        output: directory of its runs and results; by default beside the file.
        jobs: runs at a time; by default one for each GPU, or one.
        threads: of each run; by default the cores are shared evenly where there is more than one job.
        watch: called with what happens (progress.py).

    Returns:
        How it stands, failed and interrupted runs included.

    Raises:
        StudyError: the file does not describe a study, or a table of its results is corrupt or truncated.
        DestinationError: the output cannot be written.
    """
    runner = _runner(file, output, _processes(jobs, threads), watch)
    asyncio.run(runner.run())
    runner.progress.speedups = results.write(runner.progress)
    return runner.progress


def remake(
    file: str | os.PathLike[str] | Study,
    source: str,
    *,
    output: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    watch: Callable[[Event], None] | None = None,
) -> SourceRecord:
    """Train one source of a study, or train it again if its weights or its checkpoint were deleted; its record.

    Args:
        file, output, threads, watch: as of `run`.
        source: its name.

    Raises:
        StudyError: there is no such source, the study does not train it, or its training failed or was interrupted.
        DestinationError: the output cannot be written.
    """
    runner = _runner(file, output, _processes(1, threads), watch)
    known = runner.progress.study.sources
    if source not in known:
        raise StudyError("no such source", file=runner.progress.study.file, field="source", found=source,
                         expected=", ".join(known) or "[sources.NAME]")  # fmt: skip
    try:
        return asyncio.run(runner.remake(known[source]))
    except Interrupted:
        raise StudyError("interrupted", cure="rerun the same command to resume") from None


def finished(study: Study, *, output: str | os.PathLike[str] | None = None) -> Progress | None:
    """What of a study has finished, found by its keys; nothing runs and nothing is written.

    Returns:
        None if it has no results yet, else how it stands: every other run is interrupted, or failed where its key
        cannot be known, since its text or its model is not on this machine.
    """
    directory = Path(runs_of(study.file) if output is None else output)
    if not records.standings(directory):
        return None
    processes = _processes(1, None)
    processes.stop()
    runner = Runner(study, directory.absolute(), processes, lambda event: None, lambda: None)
    asyncio.run(runner.run())
    return runner.progress


def _processes(jobs: int | None, threads: int | None) -> Processes:
    import torch

    gpus = torch.cuda.device_count()
    if jobs is not None and jobs < 1:
        raise StudyError("no runs at a time", field="jobs", found=jobs, expected="1 or more")
    jobs = jobs or max(1, gpus)
    if threads is None and jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
    return Processes(jobs=jobs, threads=threads, gpus=gpus)


def _runner(
    file: str | os.PathLike[str] | Study, output: str | os.PathLike[str] | None, processes: Processes,
    watch: Callable[[Event], None] | None,
) -> Runner:  # fmt: skip
    study = file if isinstance(file, Study) else read(Path(file))
    directory = Path(runs_of(study.file) if output is None else output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DestinationError("the directory cannot be made", file=directory, found=error.strerror) from None

    def changed() -> None:
        runner.progress.speedups = results.write(runner.progress)

    runner = Runner(study, directory.absolute(), processes, watch or (lambda event: None), changed)
    return runner
