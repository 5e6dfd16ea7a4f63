"""`hyperclone train --dry-run` says what a run does, and writes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone.errors import DestinationError, TrainingError
from hyperclone.training.dry_run import dry_run
from hyperclone.training.events import Event, RunStarted
from hyperclone.training.inputs import load_model
from hyperclone.training.optimizer import make_optimizer
from tests.helpers import models
from tests.helpers.command import call
from tests.helpers.training_text import documents, jsonl

BATCH = 64


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a source and a clone of it."""
    directory = tmp_path_factory.mktemp("dry")
    jsonl(directory / "text.jsonl", documents(40))
    models.build("llama-grouped-tied").save_pretrained(directory / "source")
    models.save_tokenizer(directory / "source")
    hyperclone.grow(directory / "source", directory / "grown", hyperclone.Growth(width=2), proof="none")
    return directory


def request(directory: Path, model: str = "grown", **asked: Any) -> hyperclone.Training:
    usual: dict[str, Any] = {
        "model": str(directory / model), "data": str(directory / "text.jsonl"), "output": str(directory / "out"),
        "cache": str(directory / "cache"), "seq_len": 16, "batch_tokens": BATCH, "held_out": 0.2, "lr": 1e-3,
        "difference_lr": 3e-3,
    }  # fmt: skip
    return hyperclone.Training(**{**usual, **asked})


def files(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


def test_text_that_is_not_tokenized_stays_so_and_steps_are_those_of_tokens(directory: Path) -> None:
    before = files(directory)
    asked = request(directory, cache=str(directory / "none"))
    one_epoch, counted = dry_run(asked), dry_run(dataclasses.replace(asked, tokens=BATCH * 30))
    assert files(directory) == before
    assert (one_epoch.steps, one_epoch.tokens, one_epoch.warmup, one_epoch.windows) == (None, None, None, None)
    assert one_epoch.text.nbytes == (directory / "text.jsonl").stat().st_size
    assert (counted.steps, counted.warmup, counted.text.tokens) == (30, 1, None)
    assert one_epoch.budget.batch_tokens == counted.budget.batch_tokens == BATCH


def test_a_dry_run_after_tokenizing_is_the_run(directory: Path) -> None:
    events: list[Event] = []
    asked = request(directory, output=str(directory / "run"), save_every=1, log_every=1, eval_every=100)
    hyperclone.train(dataclasses.replace(asked, tokens=2 * BATCH, keep=1), watch=events.append)
    (started,) = (event for event in events if isinstance(event, RunStarted))
    before = files(directory)
    dry = dry_run(dataclasses.replace(asked, output=str(directory / "another"), tokens=2 * BATCH))
    assert files(directory) == before
    assert (dry.parameters, dry.windows, dry.budget) == (started.parameters, started.windows, started.budget)
    assert (dry.training.optimizer, dry.model, dry.weights) == ("muon", started.model, started.weights)
    assert dry.held_out is not None
    assert started.text is not None
    assert (dry.text.tokens, dry.held_out.tokens) == (started.text.tokens, started.held_out and started.held_out.tokens)
    content = torch.load(directory / "run/checkpoint-2/optimizer.pt", weights_only=True)
    assert sorted(group.lr for group in dry.groups) == sorted(g["initial_lr"] for g in content["param_groups"])
    stored = sum(
        (directory / "run/checkpoint-2" / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")
    )
    assert dry.checkpoint < stored < dry.checkpoint + 40_000  # names and headers
    weights = (directory / "run/model.safetensors").stat().st_size
    assert dry.output < weights < dry.output + 10_000

    with pytest.raises(DestinationError, match="already holds"):
        dry_run(dataclasses.replace(asked, tokens=2 * BATCH))
    resumed = dry_run(dataclasses.replace(asked, tokens=2 * BATCH, resume=True))
    assert (resumed.start, resumed.steps) == (2, 2)
    with pytest.raises(TrainingError, match="other settings"):
        dry_run(dataclasses.replace(asked, tokens=2 * BATCH, resume=True, lr=1e-4))
    untokenized = dataclasses.replace(asked, resume=True, cache=str(directory / "none"))
    assert dry_run(untokenized).start == 2  # as far as it is known
    with pytest.raises(TrainingError, match="other settings"):
        dry_run(dataclasses.replace(untokenized, weight_decay=0.3))


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("grown", {"optimizer": "rotated"}),
        ("grown", {"optimizer": "adamw", "difference_lr": None}),
        ("grown", {"optimizer": "muon"}),
        ("source", {"optimizer": "plain-muon", "difference_lr": None}),
        ("grown", {"from_scratch": True, "difference_lr": None}),
    ],
    ids=lambda value: str(value.get("optimizer", "from_scratch")) if isinstance(value, dict) else value,
)
def test_groups_and_state_are_those_of_the_optimizer_on_the_weights(
    model: str, asked: dict[str, Any], directory: Path
) -> None:
    dry = dry_run(request(directory, model, tokens=BATCH, **asked))
    loaded, _ = load_model(directory / model, dry.training)
    receipt = directory / model if model == "grown" and not dry.training.from_scratch else None
    optimizer = make_optimizer(dry.training, loaded, directory=directory / model, receipt=receipt)
    loaded(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    state = sum(
        v.numel() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v) and v.dim()
    )
    assert dry.memory.optimizer_state == 4 * state
    assert dry.memory.weights == dry.memory.gradients == 4 * dry.parameters
    assert [(g.lr, g.weight_decay, g.eps) for g in dry.groups] == [
        (g["lr"], g["weight_decay"], g["eps"]) for g in sorted(optimizer.param_groups, key=lambda group: -group["lr"])
    ]
    assert sum(group.parameters for group in dry.groups) == dry.parameters


def test_memory_of_a_process_follows_the_sharding(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    memory = {kind: dry_run(request(directory, sharding=kind)).memory for kind in ("none", "gradients", "full")}
    none, gradients, full = memory["none"], memory["gradients"], memory["full"]
    assert gradients.optimizer_state == full.optimizer_state == none.optimizer_state // 4
    assert none.buckets == none.weights
    assert full.whole_weights <= gradients.whole_weights == none.weights  # fp32; as many layers as full gathers


def test_an_output_that_is_a_file_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DestinationError, match="no directory"):
        dry_run(request(directory, output=str(tmp_path / "out")))


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_command_shows_it_in_its_width(directory: Path, columns: str) -> None:
    asked = ("train", directory / "grown", "--data", directory / "text.jsonl", "-o", directory / "o", "--seq-len", 16,
             "--cache", directory / "none", "--dry-run")  # fmt: skip
    shown = call(*asked, COLUMNS=columns)
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= int(columns)
    for words in ("known after tokenizing", "not tokenized yet", "rotated AdamW", "lr x 0.5, decay x 2", "Nothing was"):
        assert words in shown.stdout


def test_json_has_the_same_and_a_run_prints_none(directory: Path) -> None:
    asked = ("train", directory / "grown", "--data", directory / "text.jsonl", "-o", directory / "o", "--json")
    shown = json.loads(call(*asked, "--dry-run", "--tokens", "2048000", "--seq-len", "32").stdout)
    assert (shown["steps"], shown["warmup_steps"], shown["options"]["optimizer"]) == (1000, 10, "muon")
    assert shown["every"] == {"log": 10, "evaluate": 50, "save": 100}
    assert shown["flops"]["run"] == shown["tokens"] * shown["flops"]["token"] > 0
    assert not (directory / "o").exists()
    refused = call(*asked)
    assert refused.returncode == 2
    assert "--dry-run" in refused.stderr
