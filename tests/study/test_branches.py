"""Arms of several lengths that share their stable phase."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hyperclone.errors import StudyError
from hyperclone.report.load import read
from hyperclone.study import config_file
from hyperclone.training import checkpoints
from tests.helpers.studies import STUDY, TUNE, Commands, option, rows, run_study, write_study

STABLE = 'train = { schedule = "wsd", warmup = 2 }\nbranches = ["1k", "2k"]\n'
BRANCHED = STUDY.replace("random = true\n", f"random = true\n{STABLE}").replace("seeds = [1, 2]", "seeds = [1]")


class Keeping(Commands):
    """Its trainings leave checkpoints behind, and say which there were when each began."""

    def __init__(self, **asked: Any) -> None:
        super().__init__(**asked)
        self.there: dict[str, list[str]] = {}

    async def run(self, command: Sequence[str], log: Path, *, begin: Callable[[], None] | None = None) -> str:
        command = list(command)
        if "--branch-from" in command:
            trunk = Path(option(command, "branch-from"))
            self.there[Path(option(command, "output")).name] = [path.name for _, path in checkpoints.every(trunk)]
        await asyncio.sleep(0)
        return await super().run(command, log, begin=begin)

    def _train(self, command: list[str]) -> None:
        super()._train(command)
        (Path(option(command, "output")) / "checkpoint-4").mkdir()


def trainings(stand_in: Commands) -> dict[str, list[str]]:
    """The commands of the runs, by what stands before the key in the name of their directory."""
    trained = [c for c in stand_in.run_commands if c[0] == "train" and "/runs-of-study/runs/" in option(c, "output")]
    return {Path(option(command, "output")).name.rpartition("-")[0]: command for command in trained}


def test_branches_begin_from_the_run_of_their_arm_which_keeps_its_checkpoints_so_long(directory: Path) -> None:
    stand_in = Keeping()
    done = run_study(write_study(directory, BRANCHED), stand_in)
    assert [run.arm.name for run in done.runs] == ["random", "random-1k", "random-2k", "continued", "clone"]
    assert {run.status for run in done.runs} == {"finished"}
    commands = trainings(stand_in)
    trunk = option(commands["random-s1"], "output")
    assert option(commands["random-s1"], "keep") == "0"
    for name, tokens in (("random-1k-s1", "1k"), ("random-2k-s1", "2k")):
        assert option(commands[name], "branch-from") == trunk
        assert option(commands[name], "tokens") == tokens
        assert option(commands[name], "keep") == "1"
        assert "--from-scratch" in commands[name]
    assert list(stand_in.there.values()) == [["checkpoint-4"]] * 2
    assert not list((directory / "runs-of-study/runs").glob("*/checkpoint-*"))  # no longer needed
    assert "--branch-from" not in commands["clone-s1"]


def test_a_branch_is_the_run_that_it_would_be_by_itself(directory: Path) -> None:
    done = run_study(write_study(directory, BRANCHED), Keeping())
    alone = BRANCHED.replace('branches = ["1k", "2k"]\n', "").replace("warmup = 2 }", 'warmup = 2, tokens = "1k" }')
    again = Keeping()
    assert {run.status for run in run_study(write_study(directory, alone), again).runs} == {"finished"}
    assert not trainings(again)  # found by its key
    assert done.runs[1].record is not None


def test_a_branch_of_a_run_whose_checkpoints_are_gone_is_trained_from_the_start(directory: Path) -> None:
    run_study(write_study(directory, BRANCHED.replace('branches = ["1k", "2k"]', 'branches = ["1k"]')), Keeping())
    later = Keeping()
    assert {run.status for run in run_study(write_study(directory, BRANCHED), later).runs} == {"finished"}
    assert list(trainings(later)) == ["random-2k-s1"]
    assert "--branch-from" not in trainings(later)["random-2k-s1"]


def test_an_interrupted_branch_finds_its_trunk_again(directory: Path) -> None:
    class Stopping(Keeping):
        def _train(self, command: list[str]) -> None:
            super()._train(command)
            if "/random-s1-" in option(command, "output"):
                self.stop()

    run_study(write_study(directory, BRANCHED), Stopping())
    later = Keeping()
    assert {run.status for run in run_study(write_study(directory, BRANCHED), later).runs} == {"finished"}
    assert "--branch-from" in trainings(later)["random-1k-s1"]
    assert "random-s1" not in trainings(later)


def test_branches_take_the_rate_of_their_arm(directory: Path) -> None:
    text = BRANCHED.replace("lr = 1e-3\n", "") + TUNE
    stand_in = Keeping(loss=lambda command: 3.0 if option(command, "lr") == "0.001" else 2.0)
    run_study(write_study(directory, text.replace("[tune]", "[tune]\nextend = 0")), stand_in)
    assert {option(trainings(stand_in)[name], "lr") for name in ("random-s1", "random-1k-s1")} == {"0.002"}
    tuned = {row["arm"] for row in rows(directory / "runs-of-study/tuning.csv")}
    assert tuned == {"random", "continued", "clone"}


def test_the_tables_say_what_is_a_branch(directory: Path) -> None:
    run_study(write_study(directory, BRANCHED), Keeping())
    arms = read(directory / "runs-of-study").arms
    assert {name: arm.get("branch_of") for name, arm in arms.items()} == {
        "random": None, "random-1k": "random", "random-2k": "random", "continued": None, "clone": None,
    }  # fmt: skip


LATER = """
[sources.late]
model = "./blank"
branch_of = "small"
train = { data = ["pretrain.txt"], tokens = "4k", lr = 2e-3 }

[arms.late]
source = "late"
growth = { width = 2 }
"""
WITH_LATER = STUDY.replace("[arms.random]\n", '[arms.random]\nsource = "small"\n').replace(
    "[arms.continued]\n", '[arms.continued]\nsource = "small"\n'
).replace("[arms.clone]\n", '[arms.clone]\nsource = "small"\n') + LATER  # fmt: skip


def test_a_source_goes_on_from_the_end_of_another(directory: Path) -> None:
    stand_in = Keeping()
    done = run_study(write_study(directory, WITH_LATER), stand_in)
    assert {run.status for run in done.runs} == {"finished"}
    trained = [c for c in stand_in.run_commands if c[0] == "train" and "/sources/" in option(c, "output")]
    early, late = trained
    assert option(late, "branch-from") == option(early, "output")
    assert "--branch-from" not in early
    assert set(done.sources) == {"small", "late"}


@pytest.mark.parametrize("found", ["late", "none"])
def test_a_source_that_would_wait_for_itself_is_named(found: str, directory: Path) -> None:
    text = WITH_LATER.replace('branch_of = "small"', f'branch_of = "{found}"')
    with pytest.raises(StudyError) as caught:
        config_file.read(write_study(directory, text))
    assert caught.value.details["field"] == "sources.late.branch_of"


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ('schedule = "wsd", ', "", "arms.random.branches"),
        ("warmup = 2", "warmup = 0.1", "arms.random.train.warmup"),
        ('["1k", "2k"]', '"1k"', "arms.random.branches"),
        ('["1k", "2k"]', '["much"]', "arms.random.branches.tokens"),
        ('["1k", "2k"]', '["1k", "1k"]', "arms.random.branches"),
    ],
    ids=str,
)
def test_branches_that_cannot_be_are_named(before: str, after: str, field: str, directory: Path) -> None:
    with pytest.raises(StudyError) as caught:
        config_file.read(write_study(directory, BRANCHED.replace(before, after, 1)))
    assert caught.value.details["field"] == field
