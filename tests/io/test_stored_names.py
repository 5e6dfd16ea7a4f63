"""Names under which tensors are stored: of a saved base model, of a tied head alone, and of buffers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.architectures.registry import families
from hyperclone.architectures.stored_names import is_buffer
from hyperclone.errors import CheckpointError
from tests.helpers import unmodified
from tests.helpers.headers import headers
from tests.helpers.models import FULLY, MODELS, build
from tests.helpers.rows_more import ALIBI

ModelDir = Callable[..., Path]
ROWS = {name: MODELS[name] for name in FULLY} | ALIBI
# One row of every model type for each of tied and untied, the first.
_FIRST: dict[tuple[str, bool], str] = {}
for _name, (_type, _config) in ROWS.items():
    _family = families()[_type]
    if not _family.prefix:  # names on disk are not the base model's
        continue
    _FIRST.setdefault((_type, _family.tied({"model_type": _type, **_config})), _name)
TIED = [name for (_, tied), name in _FIRST.items() if tied]
UNTIED = [name for (_, tied), name in _FIRST.items() if not tied]
HEAD_WITH_BIAS = {"phi", "gptj", "codegen", "phimoe"}  # which a base model lacks even where the head is tied


def growth_of(name: str) -> Growth:
    return Growth(width=2, head_dim="2x") if name in ALIBI else Growth(width=2, allow_rounding=True)


def stored(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(path / "model.safetensors")
    return tensors


def with_tensors(source: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a model with other tensors in its file."""
    shutil.copytree(source, target)
    save_file(change(stored(target)), target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("model_type", sorted(families()))
def test_the_prefix_is_that_of_transformers_base_model(model_type: str) -> None:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    cls = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    assert families()[model_type].prefix in (cls.base_model_prefix + ".", "")


@pytest.mark.parametrize("name", [name for name in TIED if ROWS[name][0] not in HEAD_WITH_BIAS])
def test_a_base_models_names_are_kept_and_the_function_is_the_sources(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.base_model.save_pretrained(tmp_path / "source")
    before = stored(tmp_path / "source")
    grown = hyperclone.grow(tmp_path / "source", tmp_path / "grown", growth_of(name), proof="structural")
    after = stored(grown.path)
    head = {families()[ROWS[name][0]].tie.head} if grown.plan.untied else set()  # type: ignore[union-attr]
    assert after.keys() == before.keys() | head
    assert not any(key.startswith(model.base_model_prefix + ".") for key in after)
    assert unmodified.distance(grown.path, tmp_path / "source") < unmodified.SAME
    collapsed = hyperclone.collapse(grown.path, tmp_path / "collapsed")
    again = stored(collapsed.path)
    assert again.keys() == before.keys()
    assert collapsed.exact or grown.plan.rounds
    assert grown.plan.rounds or all(torch.equal(again[key], value) for key, value in before.items())


def test_both_proofs_and_verify_know_a_base_models_names(tmp_path: Path) -> None:
    build("qwen3-grouped-tied").base_model.save_pretrained(tmp_path / "source", max_shard_size="40KB")
    grown = hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2), shard_size="40KB")
    assert grown.proof is not None
    assert grown.proof.passed
    assert grown.proof.behavior is not None
    assert not grown.proof.behavior.failures
    index = json.loads((grown.path / "model.safetensors.index.json").read_text())["weight_map"]
    assert "embed_tokens.weight" in index
    assert hyperclone.verify(tmp_path / "source", grown.path, proof="structural").passed
    assert any("names in the grown model's lack 'model.'" in note for note in grown.plan.notes)
    assert "model.embed_tokens.weight" in hyperclone.plan(grown.path, Growth(width=2)).summary()["tensors"][0]["name"]


def test_a_grown_base_model_that_transformers_saves_whole_is_still_proved(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    build("gpt2-tied").base_model.save_pretrained(tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    hyperclone.grow_model(model, Growth(width=2)).save_pretrained(tmp_path / "grown")
    assert hyperclone.verify(tmp_path / "source", tmp_path / "grown", proof="structural").passed
    grown = hyperclone.grow(tmp_path / "source", tmp_path / "again", Growth(width=2), proof="structural").path
    config = json.loads((grown / "config.json").read_text())
    (grown / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    assert not hyperclone.verify(tmp_path / "source", grown, proof="structural").passed  # nobody saved it so


@pytest.mark.parametrize("name", [*UNTIED, *(name for name in TIED if ROWS[name][0] in HEAD_WITH_BIAS)])
def test_a_head_that_transformers_would_initialize_randomly_is_refused_with_a_cure_that_works(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    source, head = tmp_path / "source", families()[ROWS[name][0]].tie.head  # type: ignore[union-attr]
    build(name).base_model.save_pretrained(source)
    with pytest.raises(CheckpointError, match="the head is not stored") as caught:
        hyperclone.plan(source, growth_of(name))
    assert caught.value.details["tensor"] in (head, head.replace(".weight", ".bias"))
    cure = caught.value.details["cure"]
    assert "from_pretrained(SRC).save_pretrained(OUT)" in cure
    if ROWS[name][0] in HEAD_WITH_BIAS:
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(source)
    else:
        assert 'set "tie_word_embeddings": true' in cure
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    grown = hyperclone.grow(source, tmp_path / "grown", growth_of(name), proof="structural")
    assert unmodified.distance(grown.path, source) < unmodified.SAME


@pytest.mark.parametrize("name", TIED)
def test_of_a_tied_model_the_head_may_be_stored_instead_of_the_embedding(
    name: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    tie = families()[ROWS[name][0]].tie
    assert tie is not None
    source = with_tensors(
        model_dir(name), tmp_path / "source",
        lambda tensors: {tie.head if key == tie.embedding else key: value for key, value in tensors.items()},
    )  # fmt: skip
    assert torch.equal(unmodified.logits(source), unmodified.logits(model_dir(name)))
    grown = hyperclone.grow(source, tmp_path / "grown", growth_of(name), proof="structural")
    assert unmodified.distance(grown.path, model_dir(name)) < unmodified.SAME
    assert hyperclone.verify(source, grown.path, proof="structural").passed
    [note] = [note for note in grown.plan.notes if "stores the head" in note]
    assert f"({tie.head})" in note
    assert f"store the embedding ({tie.embedding})" in note
    assert not any("stores the head" in note for note in hyperclone.plan(model_dir(name), growth_of(name)).notes)
    if name == "llama-grouped-tied":
        hyperclone.collapse(grown.path, tmp_path / "back")
        back = stored(tmp_path / "back")
        assert back.keys() == stored(model_dir(name)).keys()
        assert back[tie.embedding].equal(stored(source)[tie.head])


BUFFERS: dict[str, tuple[str, Any]] = {
    "llama-grouped-tied": ("model.rotary_emb.inv_freq", torch.ones(4)),
    "qwen3-grouped-tied": ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
    "mixtral": ("model.layers.1.self_attn.rotary_emb.sin_cached", torch.ones(1, 1, 64, 8)),
    "gptj-tied": ("transformer.h.0.attn.embed_positions", torch.ones(64, 4)),
    "neox-tied": ("gpt_neox.layers.0.attention.bias", torch.ones(1, 1, 64, 64, dtype=torch.bool)),
    "neox-parallel": ("gpt_neox.layers.0.attention.masked_bias", torch.tensor(-1e9)),
    "gpt2-tied": ("transformer.h.0.attn.bias", torch.ones(1, 1, 64, 64)),
    "opt": ("model.decoder.position_ids", torch.arange(64)[None]),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_of_an_older_library_is_left_out_with_a_word(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    buffer, value = BUFFERS[name]
    source = with_tensors(model_dir(name), tmp_path / "source", lambda tensors: {**tensors, buffer: value})
    assert torch.equal(unmodified.logits(source), unmodified.logits(model_dir(name)))  # it does not matter what it is
    grown = hyperclone.grow(source, tmp_path / "grown", growth_of(name), proof="structural")
    assert grown.plan.dropped == (buffer,)
    assert any(buffer in note for note in grown.plan.notes)
    assert unmodified.distance(grown.path, model_dir(name)) < unmodified.SAME


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_has_a_buffers_name(name: str) -> None:
    assert not [key for key, entry in headers(name).entries.items() if is_buffer(key, entry.shape)]


def some_without_prefix(name: str) -> str:
    return name.removeprefix("model.") if ".0." in name or "norm" in name else name


@pytest.mark.parametrize("rename", [some_without_prefix, lambda name: f"model.{name}"], ids=["some lack it", "twice"])
@pytest.mark.parametrize("name", ["llama-grouped-untied", "mixtral", "opt"])
def test_a_prefix_may_be_missing_from_some_names_or_doubled(
    name: str, rename: Callable[[str], str], model_dir: ModelDir, tmp_path: Path
) -> None:
    source = with_tensors(
        model_dir(name), tmp_path / "source",
        lambda tensors: {rename(key): value for key, value in tensors.items()},
    )  # fmt: skip
    assert torch.equal(unmodified.logits(source), unmodified.logits(model_dir(name)))
    grown = hyperclone.grow(source, tmp_path / "grown", growth_of(name), proof="structural")
    assert unmodified.distance(grown.path, model_dir(name)) < unmodified.SAME
    assert stored(grown.path).keys() == {tensor.name for tensor in grown.plan.tensors}
    assert hyperclone.verify(source, grown.path, proof="structural").passed


def test_two_tensors_that_would_have_one_name_are_refused(model_dir: ModelDir, tmp_path: Path) -> None:
    source = with_tensors(
        model_dir("llama-grouped-tied"), tmp_path / "source",
        lambda tensors: {**tensors, "norm.weight": torch.zeros_like(tensors["model.norm.weight"])},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not part of this architecture"):
        hyperclone.plan(source, Growth(width=2))


@pytest.mark.parametrize("tensor", ["model.layers.0.attn.bias", "model.layers.0.inv_freq.weight", "model.bias"])
def test_what_only_resembles_a_buffer_is_refused(tensor: str, model_dir: ModelDir, tmp_path: Path) -> None:
    source = with_tensors(
        model_dir("llama-grouped-tied"), tmp_path / "source", lambda tensors: {**tensors, tensor: torch.ones(32)}
    )
    with pytest.raises(CheckpointError, match="not part of this architecture"):
        hyperclone.plan(source, Growth(width=2))
