"""Run files: the options of `hyperclone train` as a TOML file."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hyperclone.cli.main import app
from hyperclone.errors import TrainingError
from hyperclone.training import budget, run_file
from hyperclone.training.config import Training
from tests.helpers.command import call

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
LEAST = 'model = "m"\ndata = "text.txt"\noutput = "out"\n'


def written(directory: Path, text: str) -> Path:
    file = directory / "run.toml"
    file.write_text(text)
    return file


def test_a_run_file_has_every_option_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = written(
        tmp_path,
        'model = "m"\ndata = ["*.jsonl", "org/name:train", "~/text.txt"]\noutput = "out"\ncache = "tokens"\n'
        'tokens = "2B"\nlr = 1\nwarmup = 5\ncompile = false\nresume = true\ntasks = ["piqa", "sciq"]\n',
    )
    assert run_file.read(file, {}) == Training(
        model=str(tmp_path / "m"), data=[str(tmp_path / "*.jsonl"), "org/name:train", os.path.expanduser("~/text.txt")],
        output=str(tmp_path / "out"), cache=str(tmp_path / "tokens"), tokens="2B", lr=1, warmup=5, compile=False,
        resume=True, tasks=("piqa", "sciq"),
    )  # fmt: skip


def test_what_lies_in_the_working_directory_is_not_what_a_file_elsewhere_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert run_file.read(written(tmp_path, LEAST), {}).model == str(tmp_path / "m")


@pytest.mark.parametrize(
    ("line", "field", "details"),
    [
        ("diference-lr = 3e-4", "diference-lr", {"found": "0.0003", "expected": "difference_lr"}),
        ("LR = 1e-4", "LR", {"expected": "lr"}),
        ("zzzz = 1", "zzzz", {"expected": ", ".join(field.name for field in dataclasses.fields(Training))}),
        ("lr = 'fast'", "lr", {"found": "'fast'", "expected": "a number"}),
        ("lr = true", "lr", {"found": "True", "expected": "a number"}),
        ("anatomy = 'yes'", "anatomy", {"found": "'yes'", "expected": "true or false"}),
        ("seed = 1.5", "seed", {"found": "1.5", "expected": "a whole number"}),
        ("eval_data = [1]", "eval_data", {"found": "[1]", "expected": "text in quotes, or a list of such"}),
        ("schedule = 3", "schedule", {"expected": "cosine, linear, wsd, constant"}),
        ("schedule = 'stairs'", "schedule", {"found": "stairs", "expected": "cosine, linear, wsd, constant"}),
        ("tokens = 1e9", "tokens", {"found": "1000000000.0", "expected": "text in quotes or a whole number"}),
        ("warmup = -1", "warmup", {"found": "-1"}),
        ("[optimizer]\nname = 'muon'", "optimizer", {"expected": "rotated, adamw, muon, plain-muon"}),
        ("[arms.x]", "arms", {"cure": "hyperclone study {file}"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_run_file_gets_wrong_is_named(line: str, field: str, details: dict[str, str], tmp_path: Path) -> None:
    file = written(tmp_path, LEAST + line)
    with pytest.raises(TrainingError) as caught:
        run_file.read(file, {})
    expected = {"file": str(file), "field": field} | {name: text.format(file=file) for name, text in details.items()}
    assert expected.items() <= caught.value.details.items()


@pytest.mark.parametrize("missing", ["model", "data", "output"])
def test_a_field_that_is_needed_is_in_the_file_or_on_the_command_line(missing: str, tmp_path: Path) -> None:
    file = written(tmp_path, "\n".join(line for line in LEAST.splitlines() if not line.startswith(missing)))
    with pytest.raises(TrainingError, match="missing") as caught:
        run_file.read(file, {})
    assert caught.value.details["field"] == missing
    assert getattr(run_file.read(file, {missing: "given"}), missing) in ("given", ("given",))


class _Stopped(Exception):
    """Instead of a training."""


def parse(name: str, *words: object) -> tuple[Any, Any]:
    """A command and its context, as the command line parses them."""
    group: Any = typer.main.get_command(app)
    return group.commands[name], group.commands[name].make_context(name, [str(word) for word in words])


def parsed(*words: object) -> Training:
    """The request that `hyperclone train WORDS` makes."""
    made: list[Training] = []

    def instead(training: Training, **_: Any) -> None:
        made.append(training)
        raise _Stopped

    command, context = parse("train", *words)
    with context, pytest.MonkeyPatch.context() as patch:
        patch.setattr("hyperclone.training.run.train", instead)
        with pytest.raises(_Stopped):
            command.invoke(context)
    return made[0]


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, LEAST + "lr = 1e-3\nanatomy = true\nkeep = 7\nwarmup = 9\ncompile = true\n")
    plain = run_file.read(file, {})
    assert parsed(file) == plain  # defaults of options that were not typed do not come before the file's values
    words = ("--lr", "3e-4", "--no-anatomy", "--data", "a", "--data", "b", "--keep", 2, "--output", "o", "--no-compile")
    assert parsed(file, *words) == dataclasses.replace(
        plain, lr=3e-4, anatomy=False, data=("a", "b"), keep=2, output="o", compile=False
    )


def test_without_a_file_the_same_words_are_needed_as_ever(tmp_path: Path) -> None:
    assert parsed("m", "--data", "a", "-o", "o") == Training(model="m", data="a", output="o")
    (tmp_path / "model.toml").mkdir()
    directory = str(tmp_path / "model.toml")  # a directory is a model, whatever its name
    assert parsed(directory, "--data", "a", "-o", "o").model == directory
    refused = call("train", "m", "--output", "o")
    assert refused.returncode == 2
    assert "--data SOURCE" in refused.stderr


def test_an_option_that_does_not_go_with_the_file_is_a_fault_of_the_file_only_where_it_has_the_field(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, LEAST + "difference_lr = 3e-4\n")
    with pytest.raises(TrainingError) as caught:
        run_file.read(file, {"optimizer": "adamw"})
    assert caught.value.details["file"] == str(file)
    assert run_file.read(file, {"source_lr": 1e-3}).difference_lr is None  # it says the same in another way
    with pytest.raises(TrainingError) as caught:
        run_file.read(file, {"lr": -1.0})
    assert "file" not in caught.value.details


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_can_be_read(file: Path) -> None:
    training = run_file.read(file, {})
    assert training.seq_len
    processes = 8 if training.sharding != "none" else 1
    sizes = budget.plan(training, seq_len=training.seq_len, available=1, processes=processes)
    assert sizes.steps > training.warmup > 1
    assert training.difference_lr
    for line in file.read_text().splitlines():  # the commands at the head
        if "hyperclone grow" in line:
            parse("grow", *shlex.split(line.partition(" grow ")[2]))
