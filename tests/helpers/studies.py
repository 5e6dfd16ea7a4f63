"""Studies for tests: a study file, its text and model, and a stand-in for the commands that a study runs."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.study import config_file, results
from hyperclone.study.commands import Interrupted
from hyperclone.study.progress import OnEvent, Progress
from hyperclone.study.records import SourceRecord
from hyperclone.study.runner import Runner
from tests.helpers.models import build, save_tokenizer

STUDY = """
name = "a study"
seeds = [1, 2]

[train]
data = ["train.txt"]
eval_data = ["held_out.txt"]
tokens = "4k"
seq_len = 32
batch_tokens = 512
lr = 1e-3

[sources.small]
model = "./blank"
train = { data = ["pretrain.txt"], tokens = "2k", lr = 2e-3 }

[arms.random]
random = true
growth = { width = 2 }

[arms.continued]

[arms.clone]
growth = { width = 2 }
"""
TUNE = '\n[tune]\nlr = [1e-3, 2e-3]\ntokens = "1k"\neval_data = ["validation.txt"]\n'
TUNED = STUDY.replace("lr = 1e-3\n", "") + TUNE


def save_model(directory: Path) -> None:
    """A small model with a tokenizer, without training."""
    build("llama-grouped-tied", vocab_size=259).save_pretrained(directory / "blank")
    save_tokenizer(directory / "blank")


def write_study(directory: Path, text: str) -> Path:
    """A study file in a directory."""
    file = directory / "study.toml"
    file.write_text(text)
    return file


class Commands:
    """Stands in for the processes: keeps what would have been run, and leaves behind what a training would."""

    def __init__(self, loss: Callable[[list[str]], float] = lambda command: 3.0, fail: str = "") -> None:
        self.run_commands: list[list[str]] = []
        self.config = b""  # of models that were not made
        self._loss, self._fail = loss, fail
        self.stopped = self.existing = False
        self.where = {"versions": {"torch": "2.13.0"}, "hardware": [{"gpu": "a small one"}]}

    def stop(self) -> None:
        self.stopped = True

    async def run(self, command: Sequence[str], log: Path, *, begin: Callable[[], None] | None = None) -> str:
        await asyncio.sleep(0)
        if self.stopped:
            raise Interrupted
        if begin is not None:
            begin()
        command = list(command)
        self.run_commands.append(command)
        if self._fail and re.search(self._fail, " ".join(command)):
            raise StudyError("`hyperclone` failed", file=log, found="on purpose")
        match command[0]:
            case "train":
                self._train(command)
            case "grow":
                Path(command[2]).mkdir(parents=True)
            case "anatomy":
                return json.dumps({"tensors": [tensor(layer) for layer in (0, 1)]})
        return ""

    def _train(self, command: list[str]) -> None:
        directory = Path(option(command, "output"))
        directory.mkdir(parents=True, exist_ok=self.existing)  # a real training resumes from checkpoints only
        record = {"curve": {"steps": 8, "batch_tokens": 512, "seq_len": 32}, **self.where}
        (directory / "training.json").write_text(json.dumps(record))
        config = Path(command[1], "config.json")
        (directory / "config.json").write_bytes(config.read_bytes() if config.exists() else self.config)
        (directory / "model.safetensors").write_bytes(b"")
        loss = self._loss(command)
        lines: list[dict[str, Any]] = [
            {"step": 0, "tokens": 0, "eval_loss": 5.0, "bits_per_byte": 2.0},
            {"step": 4, "tokens": 2048, "eval_loss": (5 + loss) / 2, "bits_per_byte": 1.75},
            {"step": 8, "tokens": 4096, "loss": 4.0, "tokens_per_second": 512.0},
            {"step": 8, "tokens": 4096, "eval_loss": loss, "bits_per_byte": 1.5},
        ]
        if "--anatomy" in command:
            for step in (0, 4, 8):
                symmetry = {f"read/model.layers.{layer}.up_proj.weight": 1 - step / 10 for layer in (0, 1)}
                lines.append({"step": step, "tokens": step * 512, "anatomy": {"read": 0.5, **symmetry}})
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def tensor(layer: int) -> dict[str, Any]:
    """What `hyperclone anatomy --json` says of a matrix."""
    spectrum = {"values": [1.0, 0.5, 0.25], "size": 3, "effective_rank": 2.5, "stable_rank": 1.3}
    return {
        "name": f"model.layers.{layer}.up_proj.weight", "layer": layer, "spectrum": spectrum, "source_spectrum": None,
        "read": {"symmetry": 0.75, "divergence": 0.25, "equal": False},
    }  # fmt: skip


def option(command: list[str], name: str) -> str:
    """The value of an option in a command."""
    return command[command.index(f"--{name}") + 1]


def kinds(commands: Commands) -> list[str]:
    """The names of the commands that would have been run."""
    return [command[0] for command in commands.run_commands]


def run_study(file: Path, commands: Any, on_event: OnEvent = lambda event: None) -> Progress:
    """Run a study with stand-ins for its commands."""
    runner = runner_of(file, commands, on_event, results.write)
    asyncio.run(runner.run())
    runner.progress.speedups = results.write(runner.progress)
    return runner.progress


def remake(file: Path, commands: Any, on_event: OnEvent = lambda event: None) -> SourceRecord:
    """Train the source of a study again, with stand-ins for its commands."""
    runner = runner_of(file, commands, on_event, results.write_sources)
    return asyncio.run(runner.remake(runner.progress.study.sources["small"]))


def runner_of(file: Path, commands: Any, on_event: OnEvent, write: Callable[[Progress], object]) -> Runner:
    """A runner whose results are in `runs-of-study` beside the file."""
    commands.config = (file.parent / "blank/config.json").read_bytes() if (file.parent / "blank").is_dir() else b""
    output = file.parent / "runs-of-study"
    output.mkdir(exist_ok=True)
    runner = Runner(config_file.read(file), output, commands, on_event, lambda: (write(runner.progress), None)[1])
    return runner


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table as texts."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def tables(directory: Path) -> dict[str, bytes]:
    """The files of results in a directory, byte for byte."""
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
