"""Studies: arms x seeds with one data order, and their results.

read a TOML file (config.py) -> what each run is, as a key (identity.py, run_keys.py) -> compare with what is on record
(record_tables.py, comparison.py) -> run what is missing (runner.py, commands.py) -> its directory (paths.py) and record
(collect.py, records.py) -> tables (results.py) with speed-ups (speedup.py) -> report
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from hyperclone.errors import DestinationError, StudyError
from hyperclone.io.files import user_path
from hyperclone.study import record_tables, results
from hyperclone.study.commands import Interrupted, Processes
from hyperclone.study.config import Study
from hyperclone.study.config_file import read
from hyperclone.study.paths import runs_of
from hyperclone.study.progress import OnEvent, Progress, Run
from hyperclone.study.records import SourceRecord
from hyperclone.study.runner import Runner

__all__ = ["Progress", "Run", "Study", "finished", "read", "remake", "run", "runs_of"]


def run(
    file: str | os.PathLike[str] | Study,
    *,
    output: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Progress:
    """Run a study, or what is left of it.

    Args:
        file: the study (config.py), or what was read from it.
        output: directory of its runs and results; by default beside the file.
        jobs: runs at a time; by default one for each GPU, or one.
        threads: of each run; by default the cores are shared evenly where there is more than one job.
        on_event: called with every event (progress.py).

    Returns:
        How it stands, failed and interrupted runs included.

    Raises:
        StudyError: the file does not describe a study, or a table of its results is corrupt or truncated.
        DestinationError: the output cannot be written.
    """
    runner = _runner(file, output, _processes(jobs, threads), on_event, results.write)
    asyncio.run(runner.run())
    runner.progress.speedups = results.write(runner.progress)
    return runner.progress


def remake(
    file: str | os.PathLike[str] | Study,
    source: str,
    *,
    output: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> SourceRecord:
    """Train one source of a study, or train it again if its weights or its checkpoint were deleted.

    Of the results, only sources.csv changes (with its number of rows, and a key that is missing, in study.json), and it
    does not if the source ends at the loss on record.

    Args:
        file, output, threads, on_event: as of `run`.
        source: its name.

    Returns:
        The record of the weights that are there now (records.SourceRecord).

    Raises:
        StudyError: there is no such source, the study does not train it, its training failed or was interrupted, or a
            file of the results is corrupt or truncated.
        DestinationError: the output cannot be written.
    """
    runner = _runner(file, output, _processes(1, threads), on_event, results.write_sources)
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
        None if it has no results yet, else how it stands: every other run is interrupted, or failed where it cannot be
        identified, since its text or its model is not on this machine.

    Raises:
        StudyError: a file of the results is corrupt or truncated.
    """
    directory = user_path(runs_of(study.file) if output is None else output)
    recorded = record_tables.load(directory)
    if not recorded.rows and not recorded.records.sources:
        return None
    processes = _processes(1, None)
    processes.stop()
    runner = Runner(study, directory.absolute(), processes, lambda event: None, lambda: None)
    asyncio.run(runner.run())
    return runner.progress


def _processes(jobs: int | None, threads: int | None) -> Processes:
    if jobs is not None and jobs < 1:
        raise StudyError("no runs at a time", field="jobs", found=jobs, expected="1 or more")
    return Processes(jobs=jobs, threads=threads)


def _runner(
    file: str | os.PathLike[str] | Study, output: str | os.PathLike[str] | None, processes: Processes,
    on_event: OnEvent | None, write: Callable[[Progress], object],
) -> Runner:  # fmt: skip
    study = file if isinstance(file, Study) else read(user_path(file))
    directory = user_path(runs_of(study.file) if output is None else output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DestinationError("the directory cannot be made", file=directory, found=error.strerror) from None

    def changed() -> None:
        write(runner.progress)

    runner = Runner(study, directory.absolute(), processes, on_event or (lambda event: None), changed)
    return runner
