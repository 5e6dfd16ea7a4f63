"""The report of a study: one page without a network, and its figures for papers.

load.py -> headline.py (the answer in words), figures.py (through canvas.py and axes.py) -> html_page.py, whose
scripts (static/) draw the figures anew from their numbers
"""

from __future__ import annotations

import os
from pathlib import Path

from hyperclone.errors import DestinationError
from hyperclone.io.files import user_path, write_text
from hyperclone.report import figures, html_page, load

__all__ = ["report"]


def report(
    runs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    control: str | None = None,
) -> list[Path]:
    """Write the report of a study, or of what has finished of one that is still running.

    Args:
        runs: the directory of a study's runs.
        output: the page (.html); an older one is replaced.
        images: a directory for each figure as PNG and SVG.
        control: the arm that speed-ups are measured against; by default the study's.

    Returns:
        The files that were written, the page first.

    Raises:
        StudyError: there are no results, none of the control, or matplotlib is not installed.
        DestinationError: the page or the images cannot be written.
    """
    target = user_path(output)
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        raise DestinationError("a report is one file", file=target, expected="a name that ends in .html")
    results = load.read(user_path(runs))
    if control is not None:
        results = load.against(results, control)
    canvases = figures.every(results)
    text = html_page.render(results, canvases)
    try:
        write_text(target, text)
        files = [target]
        if images is not None:
            user_path(images).mkdir(parents=True, exist_ok=True)
            files += [file for canvas in canvases for file in canvas.save(user_path(images))]
    except OSError as error:
        raise DestinationError("the report cannot be written", file=error.filename or target,
                               found=error.strerror) from None  # fmt: skip
    return files
