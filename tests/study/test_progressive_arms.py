"""Arms with `grow_at`: one command for each run, and the small model's training in the run's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperclone import Growth
from hyperclone.errors import StudyError
from hyperclone.report import headline, load
from hyperclone.study import config_file, record_tables
from hyperclone.study.collect import sizes
from hyperclone.study.speedup import Curve, compare
from hyperclone.training import run_file
from tests.helpers.studies import STUDY, TUNED, Commands, option, rows, run_study, write_study

GROWN = """
[arms.progressive]
random = true
growth = { width = 2 }
grow_at = 0.25
"""


class InStages(Commands):
    """Of a model that is grown on the way it leaves both stages behind: 2 steps of the small model, and 6 after it."""

    def _train(self, command: list[str]) -> None:
        if not command[1].endswith(".toml"):
            super()._train(command)
            return
        out = Path(option(command, "output"))
        blank = run_file.read(Path(command[1]), {"data": ("-",), "output": "-", "tokens": 4096, "grow_at": 0.25,
                                                 "from_scratch": True}).model  # fmt: skip
        for stage in (out / "small", out / "grown"):
            stage.mkdir(parents=True)
        self.config = Path(blank, "config.json").read_bytes()  # that the clone is larger is not needed here
        per_token = sizes(Path(blank, "config.json"), 32)[1]
        record = {"curve": {"steps": 6, "batch_tokens": 512, "seq_len": 32}, **self.where,
                  "small": {"tokens": 1024, "flops_per_token": per_token // 4}}  # fmt: skip
        (out / "training.json").write_text(json.dumps(record))
        (out / "config.json").write_bytes(self.config)
        write(out / "small", [evaluated(0, 5.0), logged(2, 1024.0), evaluated(2, 4.5)])
        write(out, [evaluated(0, 4.5), logged(6, 512.0), evaluated(3, 3.5), evaluated(6, 3.0)])


def evaluated(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "tokens": 512 * step, "eval_loss": loss, "bits_per_byte": loss / 2}


def logged(step: int, speed: float) -> dict[str, float]:
    return {"step": step, "tokens": 512 * step, "loss": 4.0, "tokens_per_second": speed}


def write(directory: Path, lines: list[dict[str, float]]) -> None:
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_whole_run_is_on_record_from_token_0_and_is_found_again(directory: Path) -> None:
    stand_in = InStages()
    file = write_study(directory, f'headline = "progressive"\n{STUDY}{GROWN}')
    done = run_study(file, stand_in)
    assert {run.status for run in done.runs} == {"finished"}
    commands = [one for one in stand_in.run_commands if "/progressive-" in " ".join(one)]
    assert [(one[0], option(one, "grow-at"), option(one, "seed")) for one in commands] == [
        ("train", "0.25", "1"), ("train", "0.25", "2"),
    ]  # fmt: skip
    for command in commands:
        given = {"data": ("-",), "output": "-", "tokens": 4096, "grow_at": 0.25, "from_scratch": True}
        assert "--from-scratch" in command
        asked = run_file.read(Path(command[1]), given)
        assert asked.model == str(directory / "blank")
        assert asked.growth == Growth(width=2, seed=int(option(command, "seed")))
        assert option(command, "optimizer") == "muon"

    runs = directory / "runs-of-study"
    (row,) = (one for one in rows(runs / "runs.csv") if (one["arm"], one["seed"]) == ("progressive", "1"))
    small, large = int(row["small_flops_per_token"]), int(row["flops_per_token"])
    assert (row["tokens"], row["small_tokens"], row["source"]) == ("4096", "1024", "")
    assert int(row["flops"]) == 1024 * small + 3072 * large
    assert float(row["seconds"]) == 1024 / 1024 + 3072 / 512
    curve = [one for one in rows(runs / "evaluations.csv") if one["key"] == row["key"]]
    assert [(one["step"], one["tokens"], float(one["loss"])) for one in curve] == [
        ("0", "0", 5.0), ("2", "1024", 4.5), ("5", "2560", 3.5), ("8", "4096", 3.0),
    ]  # fmt: skip
    assert not list((runs / "runs").glob("progressive-*/grown"))  # of no more use

    said = " ".join(headline.answer(load.read(runs)).remarks)
    assert "Its small model's training counted, " in said

    before = {name: (runs / name).read_bytes() for name in ("runs.csv", "evaluations.csv", "study.json")}
    again = InStages()
    run_study(file, again)
    assert again.run_commands == []
    assert before == {name: (runs / name).read_bytes() for name in before}
    record = record_tables.load(runs).records.runs[row["key"]]
    assert (record.curve.small_tokens, record.curve.small_flops_per_token) == (1024, small)
    table = (runs / "runs.csv").read_text()
    (runs / "runs.csv").write_text(table.replace(f",1024,{small}", f",1025,{small}", 1))
    with pytest.raises(StudyError, match="flops of progressive"):
        record_tables.load(runs)


def test_growth_point_and_noise_are_part_of_what_a_run_is_and_tables_without_such_runs_stay(directory: Path) -> None:
    def keys(text: str) -> dict[tuple[str, int], str]:
        done = run_study(write_study(directory, text), InStages())
        return {(run.arm.name, run.seed): run.result.key for run in done.runs if run.result is not None}

    plain = keys(STUDY)
    assert "small_tokens" not in (directory / "runs-of-study/runs.csv").read_text()
    quarter, half = keys(STUDY + GROWN), keys(STUDY + GROWN.replace("0.25", "0.5"))
    other = keys(STUDY + GROWN.replace("width = 2", "width = 2, snr_db = 20"))
    assert all(keys_of[one] == plain[one] for keys_of in (quarter, half, other) for one in plain)
    assert len({keys_of["progressive", seed] for keys_of in (quarter, half, other) for seed in (1, 2)}) == 6


def test_its_learning_rate_is_chosen_by_runs_that_grow_on_the_way(directory: Path) -> None:
    stand_in = InStages()
    run_study(write_study(directory, TUNED.replace("[tune]", GROWN + "\n[tune]\nextend = 0", 1)), stand_in)
    tuned = [one for one in stand_in.run_commands if "/tuning/progressive-" in " ".join(one)]
    assert len(tuned) == 2
    assert {(option(one, "grow-at"), option(one, "tokens")) for one in tuned} == {("0.25", "1k")}


def test_what_was_interrupted_in_its_small_stage_is_resumed(directory: Path) -> None:
    class Interrupted(InStages):
        def _train(self, command: list[str]) -> None:
            if "/progressive-s1-" in " ".join(command):
                small = Path(option(command, "output"), "small")
                small.mkdir(parents=True)
                (small / "training.json").write_text("{}")
                raise StudyError("stopped")
            super()._train(command)

    class Resuming(InStages):
        def _train(self, command: list[str]) -> None:
            self.found = Path(option(command, "output"), "small/training.json").is_file()
            raise StudyError("stopped")

    file = write_study(directory, STUDY + GROWN)
    run_study(file, Interrupted())
    resuming = Resuming()
    run_study(file, resuming)
    assert resuming.found


@pytest.mark.parametrize(
    "text",
    ["grow_at = 0.25\n", "random = true\ngrow_at = 0.25\n", "random = true\ngrowth = { width = 2 }\ngrow_at = 2\n",
     "growth = { width = 2 }\ngrow_at = 0.25\n", "random = true\ngrowth = { width = 2 }\ngrow_at = 'soon'\n"],
)  # fmt: skip
def test_what_cannot_be_grown_on_the_way_is_named(directory: Path, text: str) -> None:
    with pytest.raises(StudyError) as caught:
        config_file.read(write_study(directory, f"{STUDY}\n[arms.x]\n{text}"))
    assert caught.value.details["field"] == "arms.x.grow_at"


def test_the_control_is_the_arm_that_is_large_from_its_start(directory: Path) -> None:
    before, after = STUDY.split("[arms.random]")
    assert config_file.read(write_study(directory, f"{before}{GROWN}[arms.random]{after}")).control == "random"


def test_flops_are_those_of_each_size_with_its_own_tokens() -> None:
    """A small model for half of the tokens, at a fourth of the cost."""
    control = Curve([0, 100, 200], [8, 6, 4], [0, 10, 20], 4.0)
    arm = Curve([0, 100, 200], [8, 6, 4], [0, 5, 15], 4.0, small_tokens=100, small_flops_per_token=1.0)
    assert arm.flops == [0, 100, 500]
    found = compare(arm, control)
    assert (found.speedup_tokens, found.flops, found.speedup_flops) == (1.0, 500, 800 / 500)
    assert found.charged_flops == found.charged_flop_efficiency == 800 / 500
    sooner = Curve([0, 50, 200], [8, 4, 3], [0, 5, 15], 4.0, small_tokens=100, small_flops_per_token=1.0)
    assert compare(sooner, control).flops == 50  # the target is reached by the small model
