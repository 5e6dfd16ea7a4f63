"""Studies: arms x seeds with one data order, and what came of them.

read a TOML file (request.py) -> what each run is, as a key (keys.py) -> run it (running.py, commands.py)
-> where it lies (places.py), what it took (costs.py) -> tables (results.py) with speed-ups (speedup.py) -> report
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperclone.errors import DestinationError, StudyError
from hyperclone.study import results
from hyperclone.study.commands import Processes
from hyperclone.study.config import Study, read
from hyperclone.study.runner import Progress, Run, Runner

__all__ = ["Progress", "Run", "Study", "read", "run", "runs_of"]


def runs_of(file: str | os.PathLike[str]) -> Path:
    """Where a study's runs are kept unless it is told otherwise: beside the file, with `.runs`."""
    return Path(file).with_suffix(".runs")


def run(
    file: str | os.PathLike[str] | Study,
    *,
    output: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    watch: Callable[[str, dict[str, Any]], None] | None = None,
) -> Progress:
    """Run a study, or what is left of it.

    Args:
        file: the study (request.py), or what was read from it.
        output: directory of its runs and results; by default beside the file.
        jobs: runs at a time; by default one for each GPU, or one.
        threads: of each run; by default the cores are shared evenly where there is more than one job.
        watch: called with what happens (Runner).

    Returns:
        How it stands; failed and interrupted runs say so.

    Raises:
        StudyError: the file asks for what there is not.
        DestinationError: the output cannot be written.
    """
    import torch

    gpus = torch.cuda.device_count()
    if jobs is not None and jobs < 1:
        raise StudyError("no runs at a time", field="jobs", found=jobs, expected="1 or more")
    jobs = jobs or max(1, gpus)
    if threads is None and jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
    study = file if isinstance(file, Study) else read(Path(file))
    place = Path(runs_of(study.file) if output is None else output)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DestinationError("the directory cannot be made", file=place, found=error.strerror) from None

    def changed() -> None:
        runner.progress.speedups = results.write(runner.progress)

    processes = Processes(jobs=jobs, threads=threads, gpus=gpus)
    runner = Runner(study, place.absolute(), processes, watch or (lambda kind, told: None), changed)
    asyncio.run(runner.run())
    changed()
    return runner.progress
