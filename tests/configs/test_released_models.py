"""Released configs: their sources, the small ones made of them, and the page that says what becomes of each."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from hyperclone.hf.model_types import causal_model_types
from hyperclone.hf.models import quiet
from hyperclone.hf.tiny_models import build_model
from tests.configs import run
from tests.configs.released import DIRECTORY, VOCAB, Released, released, small_config

EVERY = [pytest.param(model, id=model.name) for model in released()]
QUICK = ("openai-community/gpt2", "tiiuae/falcon-rw-1b", "google/gemma-2b")  # works, refused, with an option


def test_there_are_enough_models_of_enough_types() -> None:
    types = Counter(model.model_type for model in released())
    assert len(released()) >= 80
    assert len(types) >= 25
    assert max(types.values()) <= 5
    assert {"bloom", "mpt", "falcon"} <= types.keys()
    assert not types.keys() - (causal_model_types() or types.keys())
    assert len({model.name for model in released()}) == len(released())
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) < 250_000


@pytest.mark.parametrize("model", EVERY)
def test_a_config_says_where_it_was_read(model: Released) -> None:
    assert re.match(r"https://\S+$|PyPI [\w-]+ [\d.]+, \S+$", model.source)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.name)


@pytest.mark.parametrize("model", EVERY)
def test_a_small_config_has_every_field_of_the_released_one(model: Released) -> None:
    config = small_config(model.config)
    assert config.keys() == model.config.keys() - {"quantization_config"}
    for key, value in config.items():
        assert isinstance(value, type(model.config[key])), key
    changed = {key for key, value in config.items() if value != model.config[key]}
    text = {key for key in changed if isinstance(model.config[key], str)}
    assert not text - {"hybrid_override_pattern"}, (
        "only sizes, lists with an entry for each layer, and token ids differ"
    )
    assert not changed & {key for key in config if isinstance(model.config[key], bool | float)}
    assert config.get("vocab_size", VOCAB) == VOCAB


def test_proportions_and_lists_are_kept() -> None:
    llama = small_config(_config("meta-llama/Meta-Llama-3.1-8B"))
    assert llama["num_attention_heads"] == 4 * llama["num_key_value_heads"]
    assert llama["hidden_size"] == 16 * llama["num_attention_heads"]
    assert llama["intermediate_size"] == 3.5 * llama["hidden_size"]
    layered = small_config(_config("google/gemma-3-1b-it"))
    assert layered["num_hidden_layers"] == 6, "five windows and a layer without"


def test_the_page_lists_every_model() -> None:
    names = re.findall(r"^\| (\S+/\S+)", run.PAGE.read_text("utf-8"), re.MULTILINE)
    assert names == [model.name for model in released()], "run: python -m tests.configs.run"


@pytest.mark.parametrize("name", QUICK)
def test_the_page_says_what_becomes_of_a_model(name: str) -> None:
    written = run.PAGE.read_text("utf-8")
    messages = re.findall(r"^\| \d+ \| (.*) \|$", written, re.MULTILINE)
    (line,) = re.findall(rf"^\| {name} .*$", written, re.MULTILINE)
    row = run.try_model(next(model for model in released() if model.name == name))
    for said, outcome in zip(line.strip("| ").split(" | ")[-3:], row.outcomes, strict=True):
        number = re.fullmatch(r"refused \((\d+)\)", said)
        if outcome.refusal:
            assert number is not None, outcome
            assert messages[int(number[1]) - 1] == run.plain(outcome.refusal)
        else:
            assert said == (f"with {outcome.option}" if outcome.option else run.WORKS)


def test_no_model_that_a_proof_passed_is_another_function() -> None:
    assert "A FAULT" not in run.PAGE.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("model", EVERY)
def test_transformers_builds_a_small_model(model: Released) -> None:
    with quiet(errors=True):
        build_model(small_config(model.config))


def _config(name: str) -> dict[str, Any]:
    return next(model.config for model in released() if model.name == name)
