"""skip_tokens: a run goes on in the order of the data where another one has stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone.errors import TrainingError
from hyperclone.study import run_keys
from hyperclone.training import budget, packing, resume
from hyperclone.training.config import Training
from hyperclone.training.dry_run import dry_run
from tests.helpers import models
from tests.helpers.training_text import documents, jsonl
from tests.training.test_train import stopped_after

SEQUENCE, WINDOWS = 32, 4
STEP = SEQUENCE * WINDOWS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and two texts."""
    directory = tmp_path_factory.mktemp("skipped")
    models.build("llama-grouped-tied").save_pretrained(directory / "model")
    models.save_tokenizer(directory / "model")
    texts = documents(24)
    jsonl(directory / "some.jsonl", texts[:14])
    jsonl(directory / "more.jsonl", texts[14:])
    return directory


def request(place: Path, output: str, *, weights: tuple[float, ...], steps: int | None, **asked: Any) -> Training:
    names = ("some.jsonl", "more.jsonl")[: len(weights)]
    usual: dict[str, Any] = {
        "seq_len": SEQUENCE, "batch_tokens": STEP, "tokens": steps and steps * STEP, "held_out": 0, "micro_batch": 2,
        "lr": 1e-3, "warmup": 2, "schedule": "constant", "cache": str(place / "cache"), "log_every": 1, "seed": 5,
        "save_every": 40, "optimizer": "adamw",
    }  # fmt: skip
    data = [f"{place / name}={weight}" for name, weight in zip(names, weights, strict=True)]
    return Training(model=str(place / "model"), data=data, output=str(place / output), **{**usual, **asked})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The windows that runs have trained on since this list was last cleared."""
    batches: list[torch.Tensor] = []
    collate = packing.collate

    def record(windows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = collate(windows)
        batches.extend(batch["input_ids"])
        return batch

    monkeypatch.setattr(packing, "collate", record)
    return batches


def windows_of_run(training: Training, seen: list[torch.Tensor], **options: Any) -> torch.Tensor:
    seen.clear()
    hyperclone.train(training, **options)
    return torch.stack(seen)


@pytest.mark.slow
@pytest.mark.quick(1)
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0,)])
@pytest.mark.parametrize("first", [2, 20])
def test_two_runs_read_what_one_reads(
    first: int, weights: tuple[float, ...], place: Path, tmp_path: Path, seen: list[torch.Tensor]
) -> None:
    """In the first epoch and in a later one; and a run that skips is resumed where it was."""
    rest, stop = 5, 3
    name = f"{first}-{len(weights)}"
    whole = windows_of_run(request(place, f"whole-{name}", weights=weights, steps=first + rest), seen)
    before = windows_of_run(request(place, f"before-{name}", weights=weights, steps=first), seen)
    after = request(place, f"after-{name}", weights=weights, steps=rest, skip_tokens=first * STEP)
    begun = windows_of_run(after, seen, watch=stopped_after(stop))
    resumed = windows_of_run(
        request(place, f"after-{name}", weights=weights, steps=rest, skip_tokens=first * STEP, resume=True), seen
    )
    assert len(whole) == (first + rest) * WINDOWS
    assert torch.equal(before, whole[: first * WINDOWS])
    assert torch.equal(begun[: stop * WINDOWS], whole[first * WINDOWS :][: stop * WINDOWS])
    assert torch.equal(resumed, whole[(first + stop) * WINDOWS :])
    if first == 20:
        assert len(torch.unique(whole, dim=0)) < len(whole)  # it was more than one epoch


def test_without_a_number_of_tokens_a_run_reads_what_is_left_of_the_epoch(place: Path) -> None:
    training = request(place, "o", weights=(1.0,), steps=None, skip_tokens=3 * STEP)
    planned = budget.plan(training, seq_len=SEQUENCE, available=5 * WINDOWS, processes=1)
    assert planned.steps == 2
    with pytest.raises(TrainingError, match="all of the data is passed over"):
        budget.plan(training, seq_len=SEQUENCE, available=3 * WINDOWS, processes=1)


def test_it_is_on_record_where_it_is_not_zero(place: Path) -> None:
    """Records and keys of runs from before there was such an option stay as they are."""

    def recorded(skip: str | int | None) -> dict[str, Any]:
        training = request(place, "o", weights=(1.0,), steps=3, skip_tokens=skip)
        sizes = budget.plan(training, seq_len=SEQUENCE, available=100, processes=1)
        curve = resume.make_record(training, sizes, place / "model", [])["curve"]
        return {name: value for name, value in curve.items() if "skip" in name}

    assert recorded(None) == recorded(0) == recorded("0") == {}
    assert recorded(64) == recorded("64") == {"skip_tokens": 64}
    assert run_keys.training({"skip_tokens": 0}) == run_keys.training({"skip_tokens": "0"}) == {}
    assert run_keys.training({"skip_tokens": "1k"}) == {"skip_tokens": 1000}


@pytest.mark.parametrize(("recorded", "asked"), [(STEP, None), (None, STEP), (STEP, 2 * STEP)])
def test_a_run_is_not_resumed_with_another_number(
    recorded: int | None, asked: int | None, place: Path, tmp_path: Path
) -> None:
    training = request(place, "o", weights=(1.0,), steps=3, skip_tokens=recorded)
    sizes = budget.plan(training, seq_len=SEQUENCE, available=100, processes=1)
    (tmp_path / "run").mkdir()
    written = resume.make_record(training, sizes, place / "model", [])
    (tmp_path / "run" / resume.RECORD_FILE).write_text(json.dumps(written))
    other = request(place, "o", weights=(1.0,), steps=3, skip_tokens=asked)
    record = resume.make_record(other, sizes, place / "model", [])
    with pytest.raises(TrainingError, match="skip_tokens"):
        resume.checkpoint_to_resume(tmp_path / "run", record, resume=True)
    assert resume.checkpoint_to_resume(tmp_path / "run", written, resume=True) is None


def test_what_cannot_be_skipped_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="--skip-tokens 32 or --skip-tokens 64"):
        dry_run(request(place, "o", weights=(1.0,), steps=3, skip_tokens=33))
    with pytest.raises(TrainingError, match="leave --streaming or --skip-tokens out"):
        request(place, "o", weights=(1.0,), steps=3, skip_tokens=STEP, streaming=True)
    with pytest.raises(TrainingError, match="not a number of tokens"):
        request(place, "o", weights=(1.0,), steps=3, skip_tokens="many")
    of_hub = Training(model=str(place / "model"), data="org/name", output="o", tokens=STEP, skip_tokens=STEP,
                      batch_tokens=STEP, seq_len=SEQUENCE)  # fmt: skip
    with pytest.raises(TrainingError, match="download the dataset"):
        dry_run(of_hub)
