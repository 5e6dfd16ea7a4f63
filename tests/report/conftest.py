"""The study that was never run, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperclone.report.write import report
from tests.report.made import study


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return study(tmp_path / "study.runs")


@pytest.fixture(scope="package")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the report of `runs` and its images, made once. Do not write into it."""
    directory = tmp_path_factory.mktemp("reported")
    report(study(directory / "study.runs"), directory / "r.html", images=directory / "images")
    return directory
