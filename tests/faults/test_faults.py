"""The harness in short: some operations of each command, some kills; the long run is a command (harness.py)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.harness import ERRORS, SCENARIOS, Checker


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grow over an old output", "collapse"])
def test_whatever_fails_nothing_is_lost_and_a_rerun_completes_it(name: str, tmp_path: Path) -> None:
    checker, chance = Checker(name, tmp_path), random.Random(name)
    for fault in ("kill", "short write", *ERRORS):
        for number in chance.sample(range(checker.operations), 4):
            assert checker.check(number=number, fault=fault) == [], (fault, number)
    for _ in range(4):
        assert checker.check(after=chance.uniform(0, checker.seconds)) == []


def test_every_scenario_is_a_command_with_faults_to_find() -> None:
    assert {scenario.command[0] for scenario in SCENARIOS.values()} == {"grow", "collapse", "train", "study"}


@pytest.mark.slow
def test_the_harness_finds_a_run_that_breaks_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperclone.io import destination

    checker = Checker("grow one file", tmp_path)
    monkeypatch.setattr(destination.Destination, "publish", lambda self: self.partial.rename(self.target / "x"))
    assert checker.check() != []
