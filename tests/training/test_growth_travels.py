"""How a model was grown goes with it wherever it is saved, and what its weights say is compared with that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import hyperclone
from hyperclone import Growth
from hyperclone.errors import TrainingError
from hyperclone.planning.recipe import OrderName
from hyperclone.study import run_keys
from hyperclone.training.events import Event, RunStarted
from tests.helpers import models
from tests.helpers.training_text import documents, jsonl

ModelDir = Callable[..., Path]


@pytest.fixture
def grown(model_dir: ModelDir, tmp_path: Path) -> Path:
    return hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), proof="none").path


def saved_elsewhere(directory: Path, target: Path, *, config: bool = True) -> Path:
    """As other trainers save a model: without the receipt; perhaps without fields that they do not know either."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    if not config:
        del model.config.hyperclone
    model.save_pretrained(target)
    models.save_tokenizer(target)
    return target


def started(model: Path, tmp_path: Path, **options: Any) -> tuple[RunStarted, Path]:
    """A run of a step, and its output."""
    events: list[Event] = []
    text = jsonl(tmp_path / "text.jsonl", documents(20))
    output = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    request = hyperclone.Training(
        model=str(model), data=str(text), output=str(output), cache=str(tmp_path / "cache"), seq_len=32,
        batch_tokens=64, tokens=64, held_out=0.0, **options,
    )  # fmt: skip
    hyperclone.train(request, watch=events.append)
    return next(event for event in events if isinstance(event, RunStarted)), output


def test_a_model_that_another_trainer_saved_is_trained_as_the_clone_that_it_is(grown: Path, tmp_path: Path) -> None:
    run, output = started(saved_elsewhere(grown, tmp_path / "saved"), tmp_path)
    assert (run.weights, run.training.optimizer, run.scaled, run.doubt) == ("grown", "muon", True, None)
    assert "hyperclone" in json.loads((output / "config.json").read_text())


@pytest.mark.parametrize("order", ["tiled", "interleaved"])
def test_where_nothing_says_how_it_was_grown_its_weights_do_and_a_receipt_can_be_named(
    order: OrderName, model_dir: ModelDir, tmp_path: Path
) -> None:
    made = hyperclone.grow(
        model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2, order=order), proof="none"
    ).path
    bare = saved_elsewhere(made, tmp_path / "bare", config=False)
    run, _ = started(bare, tmp_path)
    assert run.weights == "stored"
    assert run.doubt is not None
    assert "2 copies of each channel" in run.doubt
    assert "--receipt" in run.doubt
    named, output = started(bare, tmp_path, receipt=str(made))
    assert (named.weights, named.training.optimizer, named.scaled, named.doubt) == ("grown", "muon", True, None)
    assert (output / "hyperclone.json").read_text() == (made / "hyperclone.json").read_text()


def test_a_receipt_that_is_none_or_another_models_is_refused(grown: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    bare = saved_elsewhere(grown, tmp_path / "bare", config=False)
    with pytest.raises(TrainingError, match="no receipt here"):
        started(bare, tmp_path, receipt=str(model_dir("llama-grouped-tied")))
    wider = hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "wider", Growth(width=3), proof="none").path
    with pytest.raises(hyperclone.HypercloneError, match="another model"):
        started(bare, tmp_path, receipt=str(wider))
    with pytest.raises(TrainingError, match="--receipt DIR"):
        started(bare, tmp_path, difference_lr=1e-3)
    with pytest.raises(TrainingError, match="were not grown"):
        started(grown, tmp_path, receipt=str(grown), from_scratch=True)


def test_random_weights_make_no_claim(grown: Path, tmp_path: Path) -> None:
    run, output = started(grown, tmp_path, from_scratch=True)
    assert run.weights == "random"
    configs = list(output.rglob("config.json"))
    assert len(configs) > 1  # of the checkpoint, and of the model
    assert not any("hyperclone" in json.loads(config.read_text()) for config in configs)


def test_a_config_that_was_taken_for_other_weights_is_doubted(grown: Path, tmp_path: Path) -> None:
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(grown))
    random.save_pretrained(tmp_path / "random")
    models.save_tokenizer(tmp_path / "random")
    run, _ = started(tmp_path / "random", tmp_path)
    assert run.doubt is not None
    assert "no channel of its embedding has a copy" in run.doubt
    assert started(grown, tmp_path)[0].doubt is None


def test_a_source_is_not_doubted(model_dir: ModelDir, tmp_path: Path) -> None:
    assert started(model_dir("llama-grouped-tied"), tmp_path)[0].doubt is None


def test_the_key_of_a_grown_model_is_the_one_that_it_had_when_configs_said_nothing(grown: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(grown, before)
    content = json.loads((grown / "config.json").read_text())
    del content["hyperclone"]
    (before / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    assert run_keys.model(before) == run_keys.model(grown)


def test_a_launch_with_deepspeed_is_refused_by_name(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(TrainingError, match="DeepSpeed flattens") as refused:
        started(grown, tmp_path)
    assert "--sharding gradients" in str(refused.value)
