"""What is recorded as finished stays so until it is known that the study asks for something else."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hyperclone import grow
from hyperclone.cli.display import study as study_display
from hyperclone.errors import DestinationError
from hyperclone.planning.growth import Growth
from hyperclone.study import config_file, results
from hyperclone.study import run as studies
from hyperclone.study.progress import Compared, Event, RunEnded
from hyperclone.study.runner import Runner
from tests.helpers.studies import STUDY, TUNED, Commands, kinds, option, rows, run_study, tables, write_study

MISSING: dict[str, Callable[[Path], object]] = {
    "text": lambda directory: (directory / "train.txt").unlink(),
    "held-out text": lambda directory: (directory / "held_out.txt").unlink(),
    "model": lambda directory: shutil.rmtree(directory / "blank"),
}
OWN = '\n[arms.own]\nmodel = "./own"\ntrain = { lr = 2e-3 }\n'


def losses(command: list[str]) -> float:
    """Validation losses with a minimum at a learning rate of 2e-3, and final losses by arm."""
    if "/tuning/" in " ".join(command):
        return 3 + abs(float(option(command, "lr")) / 2e-3 - 1)
    return 2.5 if "/clone-" in " ".join(command) else 3.0


@pytest.mark.quick(2)
@pytest.mark.parametrize("text", [STUDY, TUNED], ids=["rates given", "rates tuned"])
@pytest.mark.parametrize("missing", MISSING)
def test_a_study_whose_text_or_model_is_missing_changes_no_file(directory: Path, missing: str, text: str) -> None:
    file, runs = write_study(directory, text), directory / "runs-of-study"
    before = run_study(file, Commands(losses))
    recorded = tables(runs)
    MISSING[missing](directory)
    stand_in, events = Commands(losses), list[Event]()
    after = run_study(file, stand_in, events.append)
    assert stand_in.run_commands == []
    assert {run.status for run in after.runs} == {"failed"}
    assert tables(runs) == recorded
    assert events[0] == Compared(reused=0, kept=6, former=0, missing=0)
    assert after.chosen == before.chosen
    assert [speedup for _, speedup in after.speedups] == [speedup for _, speedup in before.speedups]


def test_a_failed_run_says_that_its_recorded_result_is_kept(directory: Path) -> None:
    file, printed = write_study(directory, STUDY), io.StringIO()
    run_study(file, Commands())
    (directory / "train.txt").unlink()
    run_study(file, Commands(), study_display.StudyView(Console(file=printed, width=300)))
    assert "clone, seed 2: failed; its recorded result is kept\nno such file or directory" in printed.getvalue()


def test_an_arm_that_cannot_be_identified_keeps_its_rows_beside_arms_that_are_run(directory: Path) -> None:
    grow(directory / "blank", directory / "own", Growth(width=2), proof="none")
    file, runs = write_study(directory, STUDY + OWN), directory / "runs-of-study"
    run_study(file, Commands(losses))
    (directory / "own").rename(directory / "away")
    before = {name: rows(runs / name) for name in ("runs.csv", "speedup.csv", "evaluations.csv")}
    done = run_study(write_study(directory, (STUDY + OWN).replace("[1, 2]", "[1, 2, 3]")), Commands(losses))
    assert {(run.arm.name, run.status) for run in done.runs if run.seed == 3} == {
        ("random", "finished"), ("continued", "finished"), ("clone", "finished"), ("own", "failed")
    }  # fmt: skip
    for name, recorded in before.items():
        now = rows(runs / name)
        assert all(row in now for row in recorded), name
    (failed,) = (row for row in rows(runs / "runs.csv") if row["status"] == "failed")
    assert (failed["arm"], failed["seed"]) == ("own", "3")


def test_a_run_whose_tuning_fails_keeps_its_row_and_the_rates_that_were_tried(directory: Path) -> None:
    """Another rate is to be tried: until it is known whether it wins, the recorded runs are those of the study."""
    file, runs = write_study(directory, TUNED), directory / "runs-of-study"
    run_study(file, Commands(losses))
    before = tables(runs)
    more = TUNED.replace("lr = [1e-3, 2e-3]", "lr = [1e-3, 2e-3, 3e-3]").replace('tokens = "1k"', 'tokens = "1000"')
    done = run_study(write_study(directory, more), Commands(fail="tuning"))
    assert {run.status for run in done.runs} == {"failed"}
    after = tables(runs)
    assert {name for name in before if after[name] != before[name]} == {"study.json"}  # the text of `tokens`
    wins = Commands(lambda command: 2.0 if option(command, "lr") == "0.003" else losses(command))
    done = run_study(file, wins)  # of the file as it is now
    assert {run.status for run in done.runs} == {"finished"}
    assert done.chosen == dict.fromkeys(("random", "continued", "clone"), 3e-3)
    assert [row["status"] for row in rows(runs / "runs.csv")] == ["finished"] * 6 + ["former"] * 6


def test_a_run_that_fails_at_a_rate_that_was_chosen_since_does_not_count_as_finished(directory: Path) -> None:
    file, runs = write_study(directory, TUNED), directory / "runs-of-study"
    run_study(file, Commands(losses))
    more = TUNED.replace("lr = [1e-3, 2e-3]", "lr = [1e-3, 2e-3, 3e-3]")
    wins = Commands(lambda command: 2.0 if option(command, "lr") == "0.003" else losses(command), fail="/runs/")
    run_study(write_study(directory, more), wins)
    assert [row["status"] for row in rows(runs / "runs.csv")] == ["failed"] * 6 + ["former"] * 6
    run_study(write_study(directory, TUNED), Commands(losses))
    assert [row["status"] for row in rows(runs / "runs.csv")] == ["finished"] * 6


def test_a_rate_that_wins_before_all_are_tried_is_not_chosen_yet(directory: Path) -> None:
    file, runs = write_study(directory, TUNED), directory / "runs-of-study"
    run_study(file, Commands(losses))
    more = TUNED.replace("lr = [1e-3, 2e-3]", "lr = [1e-3, 2e-3, 3e-3, 9e-3]")
    run_study(write_study(directory, more), Commands(lambda command: 2.0, fail="lr0.009"))
    assert {arm["tuned"] for arm in json.loads((runs / "study.json").read_text())["arms"].values()} == {None}
    assert {run.status for run in run_study(file, Commands(losses)).runs} == {"finished"}  # it can be read again


def test_rates_with_more_digits_than_tables_have_are_found_again(directory: Path) -> None:
    text = TUNED.replace("lr = [1e-3, 2e-3]", "lr = [1.23456789012e-3, 2.34567890123e-3, 3.45678901234e-3]")
    file, runs = write_study(directory, text), directory / "runs-of-study"
    run_study(file, Commands(losses))
    recorded = tables(runs)
    (directory / "validation.txt").unlink()
    events = list[Event]()
    run_study(file, Commands(losses), events.append)
    assert events[0] == Compared(reused=6, kept=0, former=0, missing=0)  # the runs are, though their tuning is not
    assert tables(runs) == recorded


def test_a_study_file_that_was_changed_but_cannot_start_changes_no_file(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands(losses))
    recorded = tables(runs)
    (directory / "train.txt").unlink()
    run_study(write_study(directory, STUDY.replace("a study", "another").replace('"4k"', '"8k"')), Commands(losses))
    assert tables(runs) == recorded


def test_a_source_that_cannot_be_identified_keeps_its_key_beside_arms_that_can(directory: Path) -> None:
    grow(directory / "blank", directory / "own", Growth(width=2), proof="none")
    file, runs = write_study(directory, STUDY + OWN), directory / "runs-of-study"
    run_study(file, Commands(losses))
    recorded = tables(runs)
    (directory / "pretrain.txt").unlink()
    done = run_study(file, Commands(losses))
    assert {(run.arm.name, run.status) for run in done.runs} == {
        ("random", "failed"), ("continued", "failed"), ("clone", "failed"), ("own", "finished")
    }  # fmt: skip
    assert tables(runs) == recorded


def test_rows_of_finished_runs_are_there_while_others_are_still_running(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands(losses))
    recorded = [row for row in rows(runs / "runs.csv") if row["status"] == "finished"]
    seen = list[bool]()

    def look(event: Event) -> None:
        if isinstance(event, RunEnded):
            now = rows(runs / "runs.csv")
            seen.append(all(row in now for row in recorded))

    run_study(write_study(directory, STUDY.replace("[1, 2]", "[3, 2, 1]")), Commands(losses), look)
    assert seen == [True] * 9


@pytest.mark.parametrize("text", [STUDY, TUNED], ids=["rates given", "rates tuned"])
def test_runs_of_another_text_become_former_and_that_is_said_before_anything_runs(directory: Path, text: str) -> None:
    file, runs = write_study(directory, text), directory / "runs-of-study"
    run_study(file, Commands(losses))
    evaluations = rows(runs / "evaluations.csv")
    (directory / "train.txt").write_text("another text " * 100)
    stand_in, printed = Commands(losses), io.StringIO()
    view = study_display.StudyView(Console(file=printed, width=1000))
    stand_in.stop()
    run_study(file, stand_in, view)  # as if it was interrupted at once
    first, *_ = printed.getvalue().splitlines()
    assert first.startswith("6 recorded runs are of another text, model or setting")
    assert "6 runs will be trained" in first
    table = rows(runs / "runs.csv")
    assert [row["status"] for row in table] == ["interrupted"] * 6 + ["former"] * 6
    assert not (runs / "speedup.csv").exists()
    assert [row for row in rows(runs / "evaluations.csv") if row not in evaluations] == []
    assert len(rows(runs / "evaluations.csv")) == len(evaluations)
    if text is TUNED:
        assert {row["arm"] for row in rows(runs / "tuning.csv")} == {""}
        assert {arm["tuned"] for arm in json.loads((runs / "study.json").read_text())["arms"].values()} == {None}
    (directory / "train.txt").write_text("text 0 " * 100)
    again = Commands(losses)
    assert {run.status for run in run_study(file, again).runs} == {"finished"}
    assert again.run_commands == []


def test_a_dry_run_counts_runs_of_another_text(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    (directory / "train.txt").write_text("another text " * 100)
    found = studies.finished(config_file.read(file), output=runs)
    assert found is not None
    assert found.compared == Compared(reused=0, kept=0, former=6, missing=6)
    assert study_display.compared(Compared(reused=6, kept=0, former=0, missing=3)) == ""


def test_a_run_whose_status_is_set_to_waiting_is_trained_again(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    table = runs / "runs.csv"
    table.write_text(table.read_text().replace("continued,2,finished", "continued,2,waiting"))
    again = Commands(lambda command: 2.75)
    again.existing = True
    assert {run.status for run in run_study(file, again).runs} == {"finished"}
    assert kinds(again) == ["train"]
    (row,) = (row for row in rows(table) if (row["arm"], row["seed"]) == ("continued", "2"))
    assert row["final_loss"] == "2.75"


def test_a_first_run_that_fails_is_recorded_with_its_error(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    (directory / "train.txt").unlink()
    run_study(file, Commands())
    assert {row["status"] for row in rows(runs / "runs.csv")} == {"failed"}
    assert all("train.txt" in row["error"] for row in rows(runs / "runs.csv"))
    (directory / "train.txt").write_text("text 0 " * 100)
    assert {run.status for run in run_study(file, Commands()).runs} == {"finished"}


def test_a_missing_model_is_no_model_without_files(directory: Path) -> None:
    """Its key would be that of nothing, and every recorded run one of another model."""
    file = write_study(directory, STUDY)
    shutil.rmtree(directory / "blank")
    done = run_study(file, Commands())
    assert all("not a model directory" in str(run.error) for run in done.runs)


def test_a_source_that_is_trained_is_recorded_although_no_run_can_begin(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    (directory / "train.txt").unlink()
    before = tables(runs)
    other = STUDY.replace("[arms.random]", '[sources.two]\nmodel = "./blank"\n\n[arms.random]\nsource = "small"', 1)
    other = other.replace("[arms.continued]", '[arms.continued]\nsource = "two"')
    other = other.replace("[arms.clone]", '[arms.clone]\nsource = "small"')
    run_study(write_study(directory, other), Commands())
    after = tables(runs)
    assert {name for name in before if after[name] != before[name]} == {"sources.csv", "study.json"}
    assert [row["name"] for row in rows(runs / "sources.csv")] == ["small", "two"]
    run_study(file, Commands())  # and all of it can be read again


def test_results_that_cannot_be_written_end_the_study(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file, output = write_study(directory, STUDY), directory / "runs-of-study"
    output.mkdir()
    runner = Runner(config_file.read(file), output, Commands(), lambda event: None, lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr("hyperclone.study.results.write_texts", full)
    with pytest.raises(DestinationError, match="No space left"):
        results.write(runner.progress)
