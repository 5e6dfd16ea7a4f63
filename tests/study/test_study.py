"""A study runs what it says, once, and whatever happens to one run does not happen to the others.

Most tests stand in for the commands: they see what would have been typed, and write what a training leaves behind. The
last ones run real commands.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hyperclone import grow
from hyperclone.cli.display import study as study_display
from hyperclone.errors import StudyError
from hyperclone.planning.growth import Growth
from hyperclone.study import commands, config_file, record_tables, run_keys
from hyperclone.study import run as studies
from hyperclone.study.commands import Diverged
from hyperclone.study.progress import Event, Progress, SourceRemade
from hyperclone.study.runner import Runner
from hyperclone.training.config import Training
from tests.helpers.command import call
from tests.helpers.studies import (
    STUDY,
    TUNE,
    Commands,
    kinds,
    option,
    remake,
    rows,
    run_study,
    save_model,
    tables,
    write_study,
)
from tests.helpers.training_text import documents


@pytest.mark.slow
def test_every_arm_is_run_with_every_seed_and_the_same_data_order(directory: Path) -> None:
    stand_in = Commands()
    done = run_study(write_study(directory, STUDY), stand_in)
    assert {(run.arm.name, run.seed, run.status) for run in done.runs} == {
        (arm, seed, "finished") for arm in ("random", "continued", "clone") for seed in (1, 2)
    }
    trained = [command for command in stand_in.run_commands if command[0] == "train"]
    assert len(trained) == 7  # the source, once, and six runs
    for command in trained[1:]:
        seed = int(re.search(r"-s(\d)-", option(command, "output"))[1])  # type: ignore[index]
        assert option(command, "seed") == str(seed)  # of the data's order
        assert ("--from-scratch" in command) == ("random-" in option(command, "output"))
        assert option(command, "data") == str(directory / "train.txt")
    clones = [command for command in stand_in.run_commands if command[0] == "grow"]
    assert sorted(option(command, "seed") if "--seed" in command else "0" for command in clones) == ["1", "2"]


def test_what_training_takes_from_a_receipt_is_part_of_what_a_run_is(directory: Path, tmp_path: Path) -> None:
    bare = run_keys.model(directory / "blank")
    (directory / "blank/README.md").write_text("words")
    assert run_keys.model(directory / "blank") == bare
    grow(directory / "blank", tmp_path / "clone", Growth(width=2), proof="none")
    key = run_keys.model(tmp_path / "clone")
    receipt = tmp_path / "clone/hyperclone.json"
    content = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**content, "source": "elsewhere", "versions": {}}))
    assert run_keys.model(tmp_path / "clone") == key
    name = next(iter(content["training"]["parameters"]))
    content["training"]["parameters"][name]["lr"] *= 2
    receipt.write_text(json.dumps(content))
    assert run_keys.model(tmp_path / "clone") != key
    receipt.unlink()  # the config says how it was grown, too
    assert run_keys.model(tmp_path / "clone") == key
    config = tmp_path / "clone/config.json"
    fields = json.loads(config.read_text())
    del fields["hyperclone"]
    config.write_text(json.dumps(fields))  # the same weights, trained as any model
    assert run_keys.model(tmp_path / "clone") not in (key, bare)


def test_a_random_arm_waits_for_no_source(directory: Path) -> None:
    class Together(Commands):
        """The source's training ends when a random arm's has begun."""

        def __init__(self) -> None:
            super().__init__()
            self.begun = asyncio.Event()

        async def run(self, command: Sequence[str], log: Path, *, begin: Callable[[], None] | None = None) -> str:
            if "/random-" in " ".join(command):
                self.begun.set()
            if "/sources/" in " ".join(command):
                await asyncio.wait_for(self.begun.wait(), 20)
            return await super().run(command, log, begin=begin)

    done = run_study(write_study(directory, STUDY), Together())
    assert {run.status for run in done.runs} == {"finished"}


def test_a_random_arm_has_the_shape_of_the_clone(directory: Path, tmp_path: Path) -> None:
    stand_in = Commands()
    run_study(write_study(directory, STUDY), stand_in)
    shape = Path(next(command for command in stand_in.run_commands if "/random-" in " ".join(command))[1])
    grow(directory / "blank", tmp_path / "clone", Growth(width=2), proof="none")
    grown = json.loads((tmp_path / "clone/config.json").read_text())
    del grown["hyperclone"]  # which is not true of random weights
    assert json.loads((shape / "config.json").read_text()) == grown
    assert (shape / "tokenizer.json").read_bytes() == (directory / "blank/tokenizer.json").read_bytes()
    assert not list(shape.glob("*.safetensors"))


def test_a_source_that_only_random_arms_have_is_not_trained(directory: Path) -> None:
    stand_in = Commands()
    done = run_study(write_study(directory, STUDY[: STUDY.index("[arms.continued]")]), stand_in)
    assert {run.status for run in done.runs} == {"finished"}
    assert not any("/sources/" in " ".join(command) for command in stand_in.run_commands)


def test_a_full_disk_fails_the_arm_and_no_other(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyperclone.training.export.carry", full)
    done = run_study(write_study(directory, STUDY), Commands())
    assert {(run.arm.name, run.status) for run in done.runs} == {
        ("random", "failed"), ("continued", "finished"), ("clone", "finished")
    }  # fmt: skip
    assert all("No space left" in str(run.error) for run in done.runs if run.status == "failed")


def test_no_command_outlives_a_study_that_breaks(directory: Path) -> None:
    stand_in = Commands()
    output = directory / "runs-of-study"
    output.mkdir()

    def broken() -> None:
        raise RuntimeError("a bug of ours")

    runner = Runner(config_file.read(write_study(directory, STUDY)), output, stand_in, lambda event: None, broken)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a bug of ours"):
        asyncio.run(runner.run())
    assert stand_in.stopped


def test_a_finished_study_runs_nothing_again(directory: Path) -> None:
    file = write_study(directory, STUDY)
    before = run_study(file, Commands())
    again = Commands()
    after = run_study(file, again)
    assert again.run_commands == []
    assert [run.path for run in after.runs] == [run.path for run in before.runs]


def test_a_study_with_nothing_to_do_does_not_load_torch(directory: Path) -> None:
    file = write_study(directory, STUDY)
    run_study(file, Commands())
    script = (
        "import sys\nfrom hyperclone.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    for options in ([], ["--dry-run"]):
        command = [sys.executable, "-c", script, "study", str(file), "-o", str(directory / "runs-of-study"), *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.stdout.splitlines()[-1] == "0 []", result.stderr


def test_weights_are_not_needed_to_reuse_what_is_finished(directory: Path) -> None:
    file = write_study(directory, STUDY)
    run_study(file, Commands())
    for kept in (directory / "runs-of-study").rglob("*.safetensors"):
        kept.unlink()
    for clone in (directory / "runs-of-study/clones").iterdir():
        clone.rmdir()
    again = Commands()
    run_study(file, again)
    assert kinds(again) == []  # neither the source, nor runs, nor clones


def forget_weights(runs: Path) -> None:
    for kept in runs.rglob("*.safetensors"):
        kept.unlink()


MORE_SEEDS = STUDY.replace("seeds = [1, 2]", "seeds = [1, 2, 3]")


def test_a_finished_study_is_found_again_in_its_tables_alone(directory: Path) -> None:
    file, runs = (
        write_study(directory, STUDY + TUNE.replace("lr = [", "extend = 0\nlr = [")),
        directory / "runs-of-study",
    )
    file.write_text(file.read_text().replace("lr = 1e-3\n", "", 1))
    before = run_study(file, Commands())
    recorded = tables(runs)
    for gone in runs.iterdir():
        if gone.is_dir():
            shutil.rmtree(gone)
    again = Commands()
    after = run_study(file, again)
    assert kinds(again) == []
    assert after.chosen == before.chosen
    assert {run.status for run in after.runs} == {"finished"}
    assert tables(runs) == recorded


def test_what_has_finished_is_known_without_running_or_writing_anything(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    assert studies.finished(config_file.read(file), output=runs) is None
    run_study(file, Commands())
    shutil.rmtree(runs / "runs")
    before = {kept: kept.stat().st_mtime_ns for kept in runs.rglob("*")}
    found = studies.finished(config_file.read(write_study(directory, MORE_SEEDS)), output=runs)
    assert found is not None
    assert {run.seed: run.status for run in found.runs} == {1: "finished", 2: "finished", 3: "interrupted"}
    assert {kept: kept.stat().st_mtime_ns for kept in runs.rglob("*")} == before
    printed = Console(width=160, file=io.StringIO())
    printed.print(study_display.outlook(config_file.read(file), found))
    (clone,) = (line for line in printed.file.getvalue().splitlines() if line.startswith("clone"))  # type: ignore[attr-defined]
    assert re.split(r"\s{2,}", clone.strip())[4:6] == ["3", "2"]
    (directory / "train.txt").unlink()  # now the keys cannot be known
    found = studies.finished(config_file.read(file), output=runs)
    assert "train.txt" in " ".join(study_display.obstacles(found))


def test_rows_of_runs_that_a_study_no_longer_asks_for_are_kept_and_found_again(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    everything = {tuple(row.values()) for row in rows(runs / "evaluations.csv")}
    run_study(write_study(directory, STUDY[: STUDY.index("[arms.clone]")]), Commands())
    assert {row["status"] for row in rows(runs / "runs.csv") if row["arm"] == "clone"} == {"former"}
    assert {tuple(row.values()) for row in rows(runs / "evaluations.csv")} == everything
    shutil.rmtree(runs / "runs")
    again = Commands()
    run_study(write_study(directory, STUDY), again)
    assert kinds(again) == []


@pytest.mark.slow
def test_a_source_whose_weights_are_gone_is_named_with_the_command_that_makes_them_again(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    forget_weights(runs)
    again = Commands()
    done = run_study(write_study(directory, MORE_SEEDS), again)
    assert {run.arm.name for run in done.runs if run.status == "failed"} == {"continued", "clone"}  # of the third seed
    assert all(f"hyperclone study {file} --source small" in str(run.error) for run in done.runs if run.error)
    assert not any("/sources/" in " ".join(command) for command in again.run_commands)
    named = MORE_SEEDS.replace("[arms.random]", 'remake = "make small"\n\n[arms.random]', 1)
    done = run_study(write_study(directory, named), Commands())
    assert all("make small" in str(run.error) for run in done.runs if run.error)
    assert remake(file, Commands()).loss == 3.0
    assert {run.status for run in run_study(file, Commands()).runs} == {"finished"}


def test_a_source_that_ends_at_another_loss_is_another_model_for_the_runs_that_begin_from_it(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    forget_weights(runs)
    before = tables(runs)
    printed = Console(file=io.StringIO(), width=1000)
    remade = remake(file, Commands(lambda command: 2.875), study_display.StudyView(printed))
    assert "ends at 2.8750 instead of 3.0000" in printed.file.getvalue()  # type: ignore[attr-defined]
    assert not list((runs / "sources").glob("*.again"))
    after = tables(runs)
    assert {name for name in after if after[name] != before[name]} == {"sources.csv", "study.json"}
    assert after["sources.csv"].startswith(before["sources.csv"])  # the recorded one as it was, and one more row
    first, second = rows(runs / "sources.csv")
    assert (first["loss"], second["loss"], second["key"]) == ("3", "2.875", remade.key)
    assert {**first, "key": "", "loss": ""} == {**second, "key": "", "loss": ""}
    run_study(write_study(directory, MORE_SEEDS), Commands())
    clones = [row for row in rows(runs / "runs.csv") if row["arm"] == "clone"]
    assert [row["source"] for row in clones] == [first["key"], first["key"], second["key"]]
    assert len(list((runs / "clones").iterdir())) == 3  # that of the third seed was grown from the new model
    assert {row["source"] for row in rows(runs / "runs.csv") if row["arm"] == "random"} == {""}
    forget_weights(runs)
    events: list[Event] = []
    remake(file, Commands(lambda command: 2.875), events.append)
    assert [(one.before, one.now) for one in events if isinstance(one, SourceRemade)] == [(2.875, 2.875)]
    assert len(rows(runs / "sources.csv")) == 2


def test_a_source_that_ends_at_the_recorded_loss_keeps_its_recorded_cost(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    forget_weights(runs)
    before = tables(runs)
    elsewhere = Commands()
    elsewhere.where = {"versions": {}, "hardware": [{"gpu": "a large one"}]}
    printed = Console(file=io.StringIO(), width=1000)
    remake(file, elsewhere, study_display.StudyView(printed))
    assert kinds(elsewhere) == ["train"]
    assert "ends at 3.0000, as recorded" in printed.file.getvalue()  # type: ignore[attr-defined]
    assert tables(runs) == before


def test_a_run_that_was_begun_from_one_model_is_not_resumed_from_another(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    first, second = Commands(fail="continued-s1"), Commands()
    run_study(file, first)
    forget_weights(runs)
    remake(file, Commands(lambda command: 2.875))
    run_study(file, second)
    outputs = [option(one, "output") for stand_in in (first, second) for one in stand_in.run_commands
               if "continued-s1" in " ".join(one)]  # fmt: skip
    assert len({*outputs}) == len(outputs) == 2


def test_a_source_is_trained_before_the_study_was_ever_run(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    assert remake(file, Commands()).loss == 3.0
    assert {*tables(runs)} == {"sources.csv"}
    found = studies.finished(config_file.read(file), output=runs)
    assert found is not None
    assert [*found.sources] == ["small"]
    again = Commands()
    assert {run.status for run in run_study(file, again).runs} == {"finished"}
    assert not any("/sources/" in option(one, "output") for one in again.run_commands if one[0] == "train")


def test_a_source_keeps_its_weights_while_it_is_trained_again_for_its_optimizer_state(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    (weights,) = (runs / "sources").glob("*/*.safetensors")
    weights.write_bytes(b"as they were")
    with_moments = STUDY.replace("[arms.clone]", '[arms.clone]\nmoments = "copy"')
    done = run_study(write_study(directory, with_moments), Commands())
    assert all("--source small" in str(run.error) for run in done.runs if run.arm.name == "clone")

    class Keeping(Commands):
        def _train(self, command: list[str]) -> None:
            assert weights.read_bytes() == b"as they were"
            super()._train(command)
            (Path(option(command, "output")) / "checkpoint-8").mkdir()

    remake(file, Keeping())
    assert weights.read_bytes() == b""
    again = Commands()
    assert {run.status for run in run_study(write_study(directory, with_moments), again).runs} == {"finished"}
    assert kinds(again).count("grow") == 2


def test_a_source_that_has_its_checkpoint_resumes_from_there(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    run_study(file, Commands())
    forget_weights(runs)
    (source,) = (one for one in (runs / "sources").iterdir() if one.is_dir())
    (source / "checkpoint-8").mkdir()
    again = Commands()
    again.existing = True
    remake(file, again)
    assert (source / "checkpoint-8").is_dir()
    assert [option(one, "output") for one in again.run_commands] == [str(source)]


def test_a_study_can_begin_from_the_source_of_another(directory: Path) -> None:
    other = directory / "other.toml"
    other.write_text(STUDY)
    file = write_study(
        directory, re.sub(r"\[sources.small\]\n.*\n.*\n", '[sources.small]\nstudy = "other.toml"\n', STUDY)
    )
    first = Commands()
    done = run_study(file, first)
    assert {run.arm.name for run in done.runs if run.status == "failed"} == {"continued", "clone"}
    assert all(f"hyperclone study {other} --source small" in str(run.error) for run in done.runs if run.error)
    with pytest.raises(StudyError, match="does not train this source"):
        remake(file, Commands())
    run_study(other, Commands())
    (directory / "runs-of-study").rename(directory / "other.runs")
    again = Commands()
    assert {run.status for run in run_study(file, again).runs} == {"finished"}
    assert not any("/sources/" in option(one, "output") for one in again.run_commands if one[0] == "train")
    ours, theirs = (record_tables.load(directory / name).records for name in ("runs-of-study", "other.runs"))
    assert {*ours.runs} == {*theirs.runs}  # the same runs, whichever study makes them
    assert ours.sources == theirs.sources  # so that speed-ups can be charged with it
    forget_weights(directory / "other.runs")
    shutil.rmtree(directory / "runs-of-study/clones")
    assert kinds_of(run_study(file, Commands())) == {"finished"}


def kinds_of(progress: Progress) -> set[str]:
    return {run.status for run in progress.runs}


def test_a_directory_without_anything_to_resume_is_in_nobodys_way(directory: Path) -> None:
    file, runs = write_study(directory, STUDY), directory / "runs-of-study"
    before = run_study(file, Commands())
    left = before.runs[0].path
    assert left is not None
    for gone in left.iterdir():
        if gone.name != "metrics.jsonl":
            gone.unlink()
    for name in {*tables(runs)} - {"sources.csv"}:
        (runs / name).unlink()
    again = Commands()
    again.existing = True
    after = run_study(file, again)
    assert kinds(again).count("train") == 6
    assert after.runs[0].status == "finished"


@pytest.mark.slow
def test_names_and_logging_are_no_part_of_a_run_but_data_and_settings_are(directory: Path) -> None:
    file = write_study(directory, STUDY)
    run_study(file, Commands())
    renamed = Commands()
    same = STUDY.replace("arms.clone", "arms.other").replace("lr = 1e-3", "lr = 1e-3\nlog_every = 3")
    run_study(write_study(directory, same), renamed)
    assert "train" not in kinds(renamed)
    faster = Commands()
    run_study(write_study(directory, STUDY.replace("[arms.clone]", "[arms.clone]\ntrain = { lr = 3e-3 }")), faster)
    assert kinds(faster).count("train") == 2  # this arm's two seeds
    (directory / "train.txt").write_text("another text " * 100)
    other = Commands()
    run_study(file, other)
    assert kinds(other).count("train") == 6  # all arms, and not the source


def test_one_failing_arm_does_not_take_the_others_with_it(directory: Path) -> None:
    stand_in = Commands(fail=r"grow .*--width 3")
    done = run_study(write_study(directory, STUDY + "\n[arms.bad]\ngrowth = { width = 3 }\n"), stand_in)
    assert {run.arm.name for run in done.runs if run.status == "failed"} == {"bad"}
    assert all(run.status == "finished" for run in done.runs if run.arm.name != "bad")
    recorded = rows(directory / "runs-of-study/runs.csv")
    assert all("on purpose" in run["error"] for run in recorded if run["arm"] == "bad")


def test_a_failing_source_fails_its_arms_only(directory: Path) -> None:
    more = STUDY.replace("[arms.random]", '[sources.other]\nmodel = "blank"\n\n[arms.random]\nsource = "other"')
    more = more.replace("[arms.continued]", '[arms.continued]\nsource = "small"')
    more = more.replace("[arms.clone]", '[arms.clone]\nsource = "small"')
    done = run_study(write_study(directory, more), Commands(fail=r"sources/small"))
    assert {run.arm.name for run in done.runs if run.status == "failed"} == {"continued", "clone"}
    assert {run.arm.name for run in done.runs if run.status == "finished"} == {"random"}


def test_a_stopped_study_says_what_was_interrupted_and_is_resumed(directory: Path) -> None:
    stopping = Commands()
    file = write_study(directory, STUDY)
    stopping._loss = lambda command: (stopping.stop(), 3.0)[1] if "continued-s1" in " ".join(command) else 3.0  # type: ignore[func-returns-value]
    done = run_study(file, stopping)
    assert "interrupted" in {run.status for run in done.runs}
    assert all(run.status == "finished" for run in run_study(file, Commands()).runs)


def best_at(rate: float) -> Callable[[list[str]], float]:
    """A validation loss with its minimum at a rate."""
    return lambda command: 3 + abs(float(option(command, "lr")) / rate - 1) if "tuning" in " ".join(command) else 3.0


def test_the_rate_with_the_lowest_validation_loss_is_taken_and_the_final_text_not_looked_at(directory: Path) -> None:
    stand_in = Commands(best_at(2e-3))
    done = run_study(
        write_study(directory, STUDY.replace("lr = 1e-3\n", "") + TUNE.replace("2e-3]", "2e-3, 4e-3]")), stand_in
    )
    assert done.chosen == dict.fromkeys(("random", "continued", "clone"), 2e-3)
    tuned = [c for c in stand_in.run_commands if c[0] == "train" and "/tuning/" in option(c, "output")]
    assert {option(c, "eval-data") for c in tuned} == {str(directory / "validation.txt")}
    assert {option(c, "tokens") for c in tuned} == {"1k"}
    assert not any("--seed" in c for c in tuned)  # the tuning's own seed, 0
    final = [c for c in stand_in.run_commands if c[0] == "train" and "/runs/" in option(c, "output")]
    assert {option(c, "lr") for c in final} == {"0.002"}


@pytest.mark.slow
@pytest.mark.parametrize("rate", [2.5e-4, 8e-3])
def test_a_grid_goes_on_past_an_end_that_wins(directory: Path, rate: float) -> None:
    done = run_study(write_study(directory, STUDY.replace("lr = 1e-3\n", "") + TUNE), Commands(best_at(rate)))
    assert done.chosen["clone"] == rate
    assert min(done.tuning["clone"]) < rate < max(done.tuning["clone"])


@pytest.mark.slow
@pytest.mark.parametrize(("extend", "rates"), [(0, [1e-3, 2e-3]), (1, [1e-3, 2e-3, 4e-3])])
def test_a_grid_goes_no_further_than_it_may(directory: Path, extend: int, rates: list[float]) -> None:
    text = STUDY.replace("lr = 1e-3\n", "") + TUNE.replace("2e-3]", f"2e-3]\nextend = {extend}")
    done = run_study(write_study(directory, text), Commands(best_at(1e-1)))
    assert [*done.tuning["clone"]] == rates
    assert done.chosen["clone"] == rates[-1]


def test_arms_that_differ_in_tokens_only_are_tuned_once_and_never_two_at_a_time(directory: Path) -> None:
    trained: list[str] = []

    class Recording(Commands):
        async def run(self, command: Sequence[str], log: Path, *, begin: Callable[[], None] | None = None) -> str:
            if command[0] == "train":
                trained.append(option(list(command), "output").rpartition("-")[2])  # its key
            return await super().run(command, log, begin=begin)

    more = '\n[arms.longer]\ngrowth = { width = 2 }\ntrain = { tokens = "8k" }\n'
    done = run_study(write_study(directory, STUDY.replace("lr = 1e-3\n", "") + more + TUNE), Recording(best_at(8e-3)))
    assert {run.status for run in done.runs} == {"finished"}, [run.error for run in done.runs]
    assert done.chosen["longer"] == done.chosen["clone"] == 8e-3
    assert len(trained) == len({*trained})


def test_tuning_looks_at_losses_only(directory: Path) -> None:
    text = STUDY.replace("lr = 1e-3\n", 'tasks = ["sciq"]\nanatomy = true\n', 1) + TUNE
    stand_in = Commands(best_at(2e-3))
    done = run_study(write_study(directory, text), stand_in)
    assert done.chosen["clone"] == 2e-3
    trained = [c for c in stand_in.run_commands if c[0] == "train" and "/sources/" not in option(c, "output")]
    assert {"--tasks" in c for c in trained if "/tuning/" in option(c, "output")} == {False}
    assert {"--tasks" in c for c in trained if "/runs/" in option(c, "output")} == {True}


def test_rates_at_which_all_training_diverges_are_no_choice(directory: Path) -> None:
    class Diverging(Commands):
        async def run(self, command: Sequence[str], log: Path, *, begin: Callable[[], None] | None = None) -> str:
            if "/tuning/clone-" in " ".join(command):
                Path(option(list(command), "output")).mkdir(parents=True)
                raise Diverged("a loss that is no number")
            return await super().run(command, log, begin=begin)

    done = run_study(write_study(directory, STUDY.replace("lr = 1e-3\n", "") + TUNE), Diverging(best_at(2e-3)))
    assert {run.arm.name for run in done.runs if run.status == "failed"} == {"clone"}
    assert any("no learning rate that was tried" in str(run.error) for run in done.runs)


def test_an_arm_can_take_the_rate_of_another(directory: Path) -> None:
    text = STUDY.replace("lr = 1e-3\n", "") + '\n[arms.longer]\ngrowth = { width = 2 }\ntrain = { tokens = "8k" }\n'
    done = run_study(write_study(directory, text + 'like = "clone"\n' + TUNE), Commands(best_at(4e-3)))
    assert "longer" not in done.tuning
    assert done.chosen["clone"] == 4e-3


def test_an_arm_can_be_tuned_in_a_way_of_its_own(directory: Path) -> None:
    text = STUDY.replace("lr = 1e-3\n", "") + TUNE
    text = text.replace("[arms.random]", '[arms.random]\ntune = { lr = [4e-3, 8e-3, 16e-3], tokens = "2k" }')
    stand_in = Commands(best_at(8e-3))
    done = run_study(write_study(directory, text), stand_in)
    assert [*done.tuning["random"]] == [4e-3, 8e-3, 16e-3]
    tuned = [c for c in stand_in.run_commands if "/tuning/" in " ".join(c)]
    assert {option(c, "tokens") for c in tuned if "/random-" in option(c, "output")} == {"2k"}
    assert {option(c, "tokens") for c in tuned if "/clone-" in option(c, "output")} == {"1k"}


def test_the_table_shows_every_arm_that_has_ended_whatever_the_control_does(directory: Path) -> None:
    def shown(text: str, stand_in: Commands) -> dict[str, list[str]]:
        done = run_study(write_study(directory, text), stand_in)
        printed = Console(width=160, file=io.StringIO())
        printed.print(study_display.table(done, done.speedups))
        lines = [re.split(r"\s{2,}", line.strip()) for line in printed.file.getvalue().splitlines()]  # type: ignore[attr-defined]
        return {line[0]: line[1:] for line in lines if line[0] in ("random", "continued", "clone")}

    losses = Commands(lambda command: 2.0 if "clone-" in " ".join(command) else 4.0)
    assert shown(STUDY, losses)["clone"][:4] == ["0.001", "2.0000", "-2.0000", "0.0000"]
    alone = STUDY[: STUDY.index("[arms.random]")] + STUDY[STUDY.index("[arms.continued]") :]
    assert shown(alone, losses) == {"continued": ["0.001", "4.0000"], "clone": ["0.001", "2.0000"]}
    failing = Commands(lambda command: 2.0 if "clone-" in " ".join(command) else 4.0, fail="random-s[34]")
    rows = shown(STUDY.replace("seeds = [1, 2]", "seeds = [3, 4]"), failing)
    assert {*rows} == {"continued", "clone"}
    assert rows["clone"][1] == "2.0000"


def test_results_have_every_evaluation_and_costs_add_up(directory: Path) -> None:
    run_study(write_study(directory, STUDY), Commands(lambda command: 2.0 if "clone-" in " ".join(command) else 4.0))
    table = rows(directory / "runs-of-study/evaluations.csv")
    assert len(table) == 18  # three arms, two seeds, three evaluations
    end = next(row for row in table if (row["arm"], row["seed"], row["step"]) == ("clone", "2", "8"))
    assert (float(end["tokens"]), float(end["loss"]), float(end["seconds"])) == (4096, 2.0, 8.0)
    spent_by = {row["arm"]: row for row in rows(directory / "runs-of-study/runs.csv") if row["seed"] == "2"}
    clone = spent_by["clone"]
    assert clone["key"] == end["key"]
    assert float(clone["flops"]) == pytest.approx(4096 * float(clone["flops_per_token"]), rel=1e-6)
    fast = next(row for row in rows(directory / "runs-of-study/speedup.csv") if row["arm"] == "clone")
    assert float(fast["speedup_tokens"]) == pytest.approx(3.0)  # from 5 to 4 in a third of the way from 5 to 2
    (source,) = rows(directory / "runs-of-study/sources.csv")
    control, spent = (float(spent_by[arm]["flops"]) for arm in ("random", "clone"))
    assert float(fast["charged_flops"]) == pytest.approx(control / (spent / 3 + float(source["flops"])), rel=1e-6)


def test_a_study_that_was_begun_on_one_machine_and_ended_on_another_names_both(directory: Path) -> None:
    run_study(write_study(directory, STUDY), Commands())
    other = Commands()
    other.where = {"versions": {"torch": "2.11.0"}, "hardware": [{"gpu": "a large one"}]}
    run_study(write_study(directory, STUDY.replace("seeds = [1, 2]", "seeds = [1, 2, 3]")), other)
    own = {row["seed"]: (row["hardware"], row["versions"]) for row in rows(directory / "runs-of-study/runs.csv")}
    small, large = ("a small one", "torch 2.13.0"), ("a large one", "torch 2.11.0")
    assert own == {"1": small, "2": small, "3": large}


def test_paths_of_the_machine_are_in_no_result(directory: Path) -> None:
    run_study(write_study(directory, STUDY), Commands(fail="continued-s2"))
    output = directory / "runs-of-study"
    assert "runs/continued-s2-" in (output / "runs.csv").read_text()  # the log of the failed run
    for content in tables(output).values():
        assert str(directory) not in content.decode()


def test_a_run_without_a_held_out_loss_before_and_after_fails_by_itself(directory: Path) -> None:
    class Unevaluated(Commands):
        def _train(self, command: list[str]) -> None:
            super()._train(command)
            if "/clone-s1-" in " ".join(command):
                file = Path(option(command, "output"), "metrics.jsonl")
                file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))

    without_anatomy = STUDY.replace("[train]", "anatomy = false\n\n[train]", 1)
    done = run_study(write_study(directory, without_anatomy), Unevaluated())
    (failed,) = (run for run in done.runs if run.status == "failed")
    assert (failed.arm.name, failed.seed) == ("clone", 1)
    assert "no held-out loss before and after training" in str(failed.error)


WRONG = [
    ("[arms.x]\nsource = 'no'\n", "arms.x.source"),
    ("[arms.x]\ngrowth = { width = 2, nois = 'none' }\n", "arms.x.growth.nois"),
    ("[arms.x]\ngrowth = { width = 2, noise = 'loud' }\n", "arms.x.growth.noise"),
    ("[arms.x]\ntrain = { schedule = 'stairs' }\n", "arms.x.train.schedule"),
    ("[arms.x]\ntrain = { output = 'there' }\n", "arms.x.train.output"),
    ("[arms.x]\nlabels = 'x'\n", "arms.x.labels"),
    ("[arms.x]\nlike = 'clone'\n", "arms.x.like"),
    ("[arms.x]\nmoments = 'copy'\n", "arms.x.moments"),
    ("[sources.x]\nstudy = 'none.toml'\n", None),
    ("[sources.x]\nmodel = 'blank'\nremake = 3\n", "sources.x.remake"),
    ("[arms.x]\nmodel = 'blank'\nrandom = true\n", "arms.x"),
    ("[arms.'../x']\n", "arms.../x"),
    ("[tune]\nlr = [1e-3]\n", "tune.lr"),
    ("[tune]\nlr = [1e-3, 2e-3]\nseed = 1\n", "tune.seed"),
    ("[tune]\nlr = [1e-3, 2e-3]\n", "tune.eval_data"),
    ("[tune]\nlr = [1e-3, 2e-3]\neval_data = ['held_out.txt']\n", "tune.eval_data"),
    ("headline = 'no'\n", "headline"),
    ("[arms.x]\ntune = { lr = [1e-3, 2e-3] }\n", "arms.x.tune"),
    ("[tune]\nlr = [1e-3, 2e-3]\nextend = true\n", "tune.extend"),
    ("[tune]\nlr = [1e-3, 2e-3]\neval_data = ['validation.txt']\n[arms.x]\ntune = 'fast'\n", "arms.x.tune"),
    ("[more]\n", "more"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "field"), WRONG, ids=[field for _, field in WRONG])
def test_what_a_study_file_gets_wrong_is_named(directory: Path, text: str, field: str | None) -> None:
    with pytest.raises(StudyError) as caught:
        config_file.read(write_study(directory, text + STUDY if text.startswith("headline") else STUDY + text))
    assert caught.value.details.get("field") == field
    assert caught.value.details["file"].endswith("study.toml" if field else "none.toml")


def test_a_file_that_is_not_there_and_one_that_is_not_toml_are_named(directory: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        config_file.read(directory / "none.toml")
    with pytest.raises(StudyError, match="not TOML"):
        config_file.read(write_study(directory, "seeds = ["))


def test_commands_mean_their_requests() -> None:
    """What is typed, read by the command line's own parser, is the request again."""
    from typer.main import get_command

    from hyperclone.cli import main

    given: dict[str, Any] = {
        "data": ("a.txt", "b.txt"), "eval_data": ("c.txt",), "tokens": "6M", "lr": 3e-3, "compile": False,
        "eval_early": True, "tasks": ("piqa", "sciq"), "min_lr": 0.0, "lr_rule": "uniform", "documents": "isolated",
    }  # fmt: skip
    command = commands.train(Path("model"), Path("out"), given, seed=7, scratch=False)
    parser: Any = get_command(main.app)
    context = parser.commands["train"].make_context("train", list(command[1:]), resilient_parsing=False)
    read: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in context.params.items()
    }
    read = {name: () if value is None and name in ("report_to",) else value for name, value in read.items()}
    assert not read.pop("dry_run")
    assert not read.pop("as_json")
    assert Training(**read) == Training(model="model", output="out", seed=7, resume=True, **given)
    growth = Growth(hidden="1.5x", heads=2, noise="gaussian", snr_db=20.0, untie=True)
    command = commands.grow(Path("a"), Path("b"), growth, optimizer_state=Path("c"), moments="first-copy")
    context = parser.commands["grow"].make_context("grow", list(command[1:]))
    expected = {"hidden": "1.5x", "heads": "2", "noise": "gaussian", "snr_db": "20.0", "untie": "True"}
    expected["moments"] = "first-copy"
    assert {name: str(context.params[name]) for name in expected} == expected


def test_a_key_follows_content_not_names_or_compression(tmp_path: Path) -> None:
    import gzip
    import lzma

    (tmp_path / "a.txt").write_text("the same")
    (tmp_path / "b.txt").write_text("the same")
    assert run_keys.text(str(tmp_path / "a.txt")) == run_keys.text(str(tmp_path / "b.txt"))
    for level in (1, 9):
        with gzip.open(tmp_path / f"{level}.txt.gz", "wb", compresslevel=level) as stream:
            stream.write(b"the same" * 99)
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"the same" * 99))
    keys = {name: run_keys.text(str(tmp_path / name)) for name in ("1.txt.gz", "9.txt.gz", "a.txt.xz")}
    assert keys["1.txt.gz"] == keys["9.txt.gz"] == keys["a.txt.xz"]
    assert run_keys.training({"tokens": "1k", "keep": 3}) == run_keys.training({"tokens": 1000})
    assert run_keys.training({"optimizer": "rotated"}) != run_keys.training({"optimizer": "adamw"})
    assert run_keys.clone("a", Growth(width=2), None) == run_keys.clone("a", Growth(width=2, noise="split"), None)
    assert run_keys.clone("a", Growth(width=2), None) != run_keys.clone("a", Growth(width=2, seed=1), None)
    assert run_keys.clone("a", Growth(width=2), None) != run_keys.clone("a", Growth(width=2), "copy")


def test_a_shared_difference_rate_is_for_those_that_have_differences(directory: Path) -> None:
    more = STUDY.replace("[train]\n", "[train]\ndifference_lr = 4e-3\n", 1)
    assert "difference_lr" in more
    more += '\n[arms.published]\ngrowth = { width = 2 }\ntrain = { lr_rule = "uniform" }\n'
    more += '\n[arms.usual]\ngrowth = { width = 2 }\ntrain = { optimizer = "adamw" }\n'
    stand_in = Commands()
    run_study(write_study(directory, more), stand_in)
    arms = {Path(option(c, "output")).name.split("-s")[0] for c in stand_in.run_commands if "--difference-lr" in c}
    assert arms == {"clone"}
    wrong = more + '\n[arms.both]\ngrowth = { width = 2 }\ntrain = { optimizer = "adamw", difference_lr = 1e-3 }\n'
    with pytest.raises(StudyError, match="does not distinguish differences"):
        config_file.read(write_study(directory, wrong))
    wrong = more + '\n[arms.both]\ngrowth = { width = 2 }\nmoments = "first-copy"\ntrain = { optimizer = "rotated" }\n'
    with pytest.raises(StudyError, match="moments of the first copy"):
        config_file.read(write_study(directory, wrong))


@pytest.mark.slow
def test_every_run_names_its_optimizer(directory: Path) -> None:
    """What `train` would take by default is part of the key, and so of the command."""
    more = (
        STUDY
        + """
[arms.published]
growth = { width = 2, noise = "none" }
train = { lr_rule = "uniform" }

[arms.plain]
growth = { width = 2 }
train = { optimizer = "adamw" }

[arms.reset]
growth = { width = 2 }
moments = "reset"

[arms.with-state]
growth = { width = 2 }
moments = "copy"

[arms.asymmetric]
growth = { width = 2 }
moments = "first-copy"

[arms.deeper]
growth = { layers = "2x" }

[arms.other]
model = "other"
"""
    )
    grow(directory / "blank", directory / "other", Growth(width=2), proof="none", overwrite=True)

    class Keeping(Commands):
        def _train(self, command: list[str]) -> None:
            super()._train(command)
            (Path(option(command, "output")) / "checkpoint-8").mkdir()

    stand_in = Keeping()
    run_study(write_study(directory, more), stand_in)
    final = [c for c in stand_in.run_commands if c[0] == "train" and "/runs/" in option(c, "output")]
    optimizers = {
        Path(option(c, "output")).name.split("-s1-")[0]: option(c, "optimizer") for c in final if "-s1-" in str(c)
    }
    assert optimizers == {
        "random": "muon",
        "continued": "muon",
        "published": "adamw",
        "deeper": "muon",
        "plain": "adamw",
        "with-state": "muon",
        "asymmetric": "adamw",
        "clone": "muon",
        "reset": "muon",
        "other": "muon",
    }


# real commands


REAL = STUDY.replace("seeds = [1, 2]", "seeds = [1]").replace('tokens = "4k"', 'tokens = "4096"')


def study(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`hyperclone study` in this process; what it starts are processes of their own."""
    environment = {"OMP_NUM_THREADS": "1", "HYPERCLONE_CACHE": str(directory / "cache")}
    return call("study", directory / "study.toml", "--threads", 1, *options, **environment)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a model and text that can be trained."""
    directory = tmp_path_factory.mktemp("study")
    save_model(directory)
    for number, name in enumerate(("train", "held_out", "pretrain")):
        (directory / f"{name}.txt").write_text(" ".join(documents(60, seed=number)))
    (directory / "study.toml").write_text(REAL)
    return directory


@pytest.mark.slow
def test_a_real_study_ends_with_tables(real: Path) -> None:
    """One that is interrupted: tests/demo."""
    done = study(real, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    table = rows(real / "study.runs/evaluations.csv")
    assert {row["arm"] for row in table} == {"random", "continued", "clone"}
    start = {row["arm"]: float(row["loss"]) for row in table if row["step"] == "0"}
    assert start["clone"] == pytest.approx(start["continued"], rel=1e-5)  # the clone computes its source's function
    assert start["random"] != pytest.approx(start["continued"], rel=1e-3)
    assert {row["status"] for row in rows(real / "study.runs/runs.csv")} == {"finished"}
    assert rows(real / "study.runs/anatomy.csv")
    assert "speed" in done.stdout


@pytest.mark.slow
def test_a_source_that_is_made_again_has_the_recorded_loss_and_its_clones_the_recorded_start(real: Path) -> None:
    """After the test above: everything but the tables is gone, as it is in a fresh copy of a repository."""
    runs = real / "study.runs"
    if not (runs / "runs.csv").exists():
        pytest.skip("the study above has not run")
    recorded = record_tables.load(runs).records
    for name in ("sources", "clones", "runs", "shapes"):
        shutil.rmtree(runs / name)
    more = real / "study.toml"
    more.write_text(REAL + "\n[arms.again]\ngrowth = { width = 2 }\ntrain = { lr = 2e-3 }\n")
    try:
        refused = study(real)
        assert refused.returncode == 1
        assert "study.toml --source small" in refused.stdout + refused.stderr
        remade = study(real, "--source", "small")
        assert remade.returncode == 0, remade.stderr
        (before,), (again,) = recorded.sources.values(), record_tables.load(runs).records.sources.values()
        assert again.loss == pytest.approx(before.loss, abs=1e-6)
        assert "as recorded" in remade.stderr
        done = study(real)
        assert done.returncode == 0, done.stderr
        start = {row["arm"]: float(row["loss"]) for row in rows(runs / "evaluations.csv") if row["step"] == "0"}
        assert start["again"] == pytest.approx(start["clone"], rel=1e-6)
    finally:
        more.write_text(REAL)
