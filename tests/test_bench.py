"""`make bench`: one command runs every measurement, and one table holds them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import all as driver
from bench import tables

ROOT = Path(__file__).parents[1]
_UNITS = ("seconds", "user_seconds", "system_seconds")
_PARTS = ("start", "read", "read, split", "read, split, draw", "page cache", "page cache, disk", "grow")
_MADE_UP: dict[str, Any] = {  # results that are not committed yet, in the form that their scripts write
    "grow-threads": {"figures": {
        f"{count} threads": {"output_bytes": 1e9, "seconds": {"grow": [2.0], "copy": [1.0]},
                             "user_seconds": {"grow": 1.0}, "peak_MB": {"grow": 300},
                             "ratio_to_copy": {"grow": [2.0, 2.0, 2.0]}}
        for count in (1, 2)
    }},
    "grow-memory": {"figures": [
        {"source_GB": size, "output_GB": 4 * size, "grow_seconds": 1.0, "grow_peak_MB": 300, "verify_seconds": 1.0,
         "verify_peak_MB": 300}
        for size in (1, 2, 4)
    ]},
    "parts": {"figures": {unit: {part: [float(n + 1)] for n, part in enumerate(_PARTS)} for unit in _UNITS}},
    "tokens": {"characters": 2e6, "figures": {
        "seconds": {"hyperclone": {"wall": {"median": 1.0}, "cpu": {"median": 2.0}}},
        "ratio": {clock: {"median": 0.8, "lowest": 0.7, "highest": 0.9} for clock in ("wall", "cpu")},
    }},
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of every measurement."""
    for name in driver.measurements(driver.FULL, tmp_path):
        committed = tables.RESULTS / f"{name}.json"
        text = committed.read_text() if committed.exists() else json.dumps(_MADE_UP[name])
        (tmp_path / f"{name}.json").write_text(text)
    return tmp_path


def test_the_overview_has_rows_of_every_measurement(results: Path) -> None:
    assert set(tables.OVERVIEW) == set(driver.measurements(driver.FULL, results))
    text = tables.overview(results)
    for row in (
        "grow, ", "copy, ", "verify, ", "read and hash, ", "grow + structural proof, ", "in memory, ", "start-up, ",
        *(f"grow, {kind} " for kind in ("2x", "2x diagonal", "2x no noise", "2x gaussian", "2x fp16", "2x fp32", "4x")),
        "memory of grow, ", "part of a growth: arithmetic", "part of a growth: the disk", "hyperclone --help",
        "plan, 100 files", "optimizer step, rotated, 2x ", "training, hyperclone", "training, rotated", "tokenizing ",
    ):  # fmt: skip
        assert f"\n| {row}" in text, row
    for name in driver.measurements(driver.FULL, results):
        (results / f"{name}.json").unlink()
        assert len(tables.overview(results)) < len(text), name
        text = tables.overview(results)
    assert len(text.splitlines()) == 2


def test_a_part_is_what_its_process_takes_beyond_the_part_that_it_contains() -> None:
    seconds = {"start": [2.0], "read": [3.0], "read, split": [7.0, 8.0, 9.0], "read, split, draw": [10.0],
               "page cache": [5.0], "page cache, disk": [11.0], "grow": [12.0]}  # fmt: skip
    assert list(tables.net(seconds).values()) == [2, 1, 5, 2, 3, 6, 12]


@pytest.mark.parametrize("size", [driver.FULL, driver.QUICK])
def test_every_measurement_is_run_once_with_an_output_of_its_own(
    size: driver.Size, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def record(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        if "make" in command:
            Path(command[-1]).mkdir()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", record)
    names = list(driver.measurements(size, tmp_path))
    driver.run(size, tmp_path, tmp_path / "results", names)
    assert [command[-1] for command in commands[1:]] == [str(tmp_path / f"results/{name}.json") for name in names]
    assert "make" in commands[0]
    assert [path.name for path in tmp_path.iterdir()] == ["results"], "scratch files are left"


@pytest.mark.slow
def test_a_measurement_runs_and_its_rows_are_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.all", "--quick", "--work", str(tmp_path), "--only", "tokens"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.count("| tokenizing 0.5 MB of text |") == 2
    assert not (tmp_path / "scratch").exists()
