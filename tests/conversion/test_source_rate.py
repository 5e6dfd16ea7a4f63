"""The rate that a source was trained with: found in its records, kept in the receipt, and taken by `train`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hyperclone
from hyperclone import Growth
from hyperclone.conversion import receipt
from hyperclone.conversion.source_rate import SourceRate, difference_lr, source_rate
from hyperclone.errors import CheckpointError, TrainingError
from hyperclone.training import preparation
from hyperclone.training.config import Training
from tests.helpers.models import build

OURS = {"curve": {"lr": 6e-3, "from_scratch": True}}
STEPS = [{"learning_rate": 1e-4}, {"learning_rate": 4e-3}, {"learning_rate": 2e-3}, {"eval_loss": 3.0}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"training.json": OURS}, SourceRate(6e-3, "training.json")),
        ({"trainer_state.json": {"log_history": STEPS}}, SourceRate(4e-3, "trainer_state.json")),
        ({"training.json": OURS, "trainer_state.json": {"log_history": STEPS}}, SourceRate(6e-3, "training.json")),
        # A rate with which trained weights were trained further says nothing of random ones.
        ({"training.json": {"curve": {"lr": 6e-3, "from_scratch": False}}}, None),
        ({"training.json": {"curve": {"lr": "fast", "from_scratch": True}}}, None),
        ({"training.json": {"curve": {"lr": -1.0, "from_scratch": True}}}, None),
        ({"training.json": {"curve": [1]}, "trainer_state.json": {"log_history": 5}}, None),
        ({"trainer_state.json": {"log_history": [3, {"learning_rate": float("nan")}]}}, None),
        ({"trainer_state.json": {"log_history": []}}, None),
    ],
)
def test_a_record_beside_the_source_says_its_peak_rate(
    files: dict[str, Any], expected: SourceRate | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert source_rate(tmp_path) == expected


def test_a_file_that_is_no_json_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{")
    assert source_rate(tmp_path) is None


def test_the_rate_of_the_differences_falls_with_the_hidden_size() -> None:
    assert difference_lr(6e-3, 64, 128) == pytest.approx(3e-3)
    assert difference_lr(6e-3, 64, 64) == 6e-3


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """A 2x clone of a source with a record."""
    build("llama-grouped-tied").save_pretrained(tmp_path / "source")
    (tmp_path / "source/training.json").write_text(json.dumps(OURS))
    hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2), proof="none")
    return tmp_path / "grown"


def asked(grown: Path, **options: Any) -> Training:
    """A request as it is run."""
    training = Training(**{"model": str(grown), "data": "text", "output": str(grown.parent / "run"), **options})
    used = None if training.from_scratch else grown
    return preparation._with_optimizer(training, grown, grown.parent / "run", used, moments=False)


def test_plan_and_receipt_say_it_and_training_takes_it(grown: Path) -> None:
    notes = hyperclone.plan(grown.parent / "source", Growth(width=2)).notes
    assert "trained with 0.003, that times 32/64" in notes[-1]
    assert "learning rate" not in "".join(hyperclone.plan(grown.parent / "source", Growth(layers="2x")).notes)
    recorded = receipt.read(grown)
    assert recorded is not None
    assert recorded.source_lr == 6e-3
    assert asked(grown).difference_lr == pytest.approx(3e-3)
    assert asked(grown, optimizer="muon").difference_lr == pytest.approx(3e-3)
    assert asked(grown, source_lr=2e-3).difference_lr == pytest.approx(1e-3)
    assert asked(grown, difference_lr=5e-3).difference_lr == 5e-3
    for without in (
        {"optimizer": "adamw"},
        {"optimizer": "plain-muon"},
        {"from_scratch": True},
        {"lr_rule": "uniform"},
    ):
        assert asked(grown, **without).difference_lr is None


def test_without_a_record_differences_have_the_common_rate(grown: Path) -> None:
    content = json.loads((grown / receipt.FILE).read_text())
    del content["source_lr"]
    (grown / receipt.FILE).write_text(json.dumps(content))
    assert asked(grown).difference_lr is None
    assert asked(grown, source_lr=2e-3).difference_lr == pytest.approx(1e-3)


def test_what_cannot_be_meant_is_refused(grown: Path) -> None:
    for options, message in (
        ({"source_lr": 1e-3, "difference_lr": 1e-3}, "given already"),
        ({"source_lr": 1e-3, "optimizer": "adamw"}, "--source-lr out"),
        ({"source_lr": -1.0}, "out of range"),
        ({"source_lr": 1e-3, "from_scratch": True}, "leave --source-lr out: randomly"),
        ({"source_lr": 1e-3, "lr_rule": "uniform"}, "--source-lr out"),
    ):
        with pytest.raises(TrainingError, match=message):
            asked(grown, **options)
    content = json.loads((grown / receipt.FILE).read_text())
    for wrong in ({"lr": "6e-3"}, {"lr": -1}, [1], {}):
        (grown / receipt.FILE).write_text(json.dumps({**content, "source_lr": wrong}))
        with pytest.raises(CheckpointError, match="incomplete or corrupt"):
            receipt.read(grown)


def test_a_record_resolves_once(grown: Path) -> None:
    """What was resolved is what is recorded, so a resumed run has it."""
    resolved = asked(grown, source_lr=2e-3)
    assert resolved.source_lr is None
    assert resolved.difference_lr == pytest.approx(1e-3)
    assert replace(resolved, resume=True).difference_lr == pytest.approx(1e-3)


def test_a_model_that_was_grown_in_memory_is_trained_as_a_clone(tmp_path: Path) -> None:
    """Its config says how it was grown; there is no receipt."""
    hyperclone.grow_model(build("llama-grouped-tied"), Growth(width=2)).save_pretrained(tmp_path / "grown")
    assert not (tmp_path / "grown" / receipt.FILE).exists()
    training = Training(model=str(tmp_path / "grown"), data="text", output=str(tmp_path / "run"))
    assert preparation._receipt(training, tmp_path / "grown") == tmp_path / "grown"
    assert preparation._receipt(replace(training, from_scratch=True), tmp_path / "grown") is None
    assert asked(tmp_path / "grown").optimizer == "muon"
