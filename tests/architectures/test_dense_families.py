"""Dense families: defaults, old checkpoints, head counts of their own, and what is refused, with the reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.architectures.expression import names
from hyperclone.errors import CheckpointError
from hyperclone.hf.tiny_models import randomize_parameters
from hyperclone.planning import notes
from hyperclone.planning.recipe import DepthMode
from tests.helpers import models, rows_dense
from tests.helpers.models import build
from tests.proof import test_rounded_families

pytestmark = pytest.mark.matrix

ModelDir = Callable[..., Path]


def save_changed(source: Path, directory: Path, *, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """A model directory with another config and weights."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def config_of(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    return config


@pytest.mark.parametrize("model_type", sorted(registry.families()))
def test_defaults_are_those_of_the_config_class(model_type: str) -> None:
    """A field that the family file reads has the class's default; or there is none; or a config must have the field."""
    family = registry.families()[model_type]
    # What the class says before it fills in one field from others (heads without KV heads of their own).
    class_defaults = {field.name: field.default for field in dataclasses.fields(CONFIG_MAPPING[model_type])}
    defaults = {
        field: value for field, value in family.fields({"model_type": model_type}).items() if field in class_defaults
    }
    assert defaults == {field: class_defaults[field] for field in defaults}
    texts = [text for where, text in family_file._expressions(family) if not where.startswith("upcycled")]
    read = {name for text in texts for name in names(text)}
    read |= {spec.eps for spec in family.residual.values() if spec.eps} | {
        field for field in class_defaults if notes._is_dropout(field)
    }
    open_to_all = {field for field in read & set(class_defaults) - set(defaults) if class_defaults[field] is not None}
    for field in open_to_all:
        without = {key: value for key, value in class_defaults.items() if key != field} | {"model_type": model_type}
        with pytest.raises(CheckpointError):
            _ = family.depth(without), family.sizes(without)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("qwen2-grouped-tied", {"hidden": "2x"}),
        ("qwen2-window", {"heads": "4x", "kv_heads": "2x"}),
        ("qwen3-free-head-dim", {"hidden": "3x", "heads": "2x"}),
        ("qwen3-grouped-tied", {"heads": "2x", "kv_heads": "1x"}),
        ("granite-grouped-tied", {"hidden": "2x"}),
        ("smollm3-grouped-tied", {"heads": "2x"}),
        ("starcoder2-grouped-tied", {"hidden": "2x", "ffn": "3x"}),
        ("phi-grouped-tied", {"hidden": "2x"}),
        ("phi-qk-norms", {"hidden": "2x", "heads": "2x", "kv_heads": "1x"}),
        ("phi3-multiquery-untied", {"hidden": "2x", "heads": "2x", "kv_heads": "2x"}),
        ("stablelm-grouped-untied", {"hidden": "2x", "heads": "2x", "kv_heads": "1x"}),
        ("gpt2-implied-ffn", {"hidden": "2x", "heads": "2x"}),
        ("gpt2-tied", {"ffn": "2x"}),
        ("gptj-implied-ffn", {"ffn": "3x"}),
    ],
    ids=str,
)
def test_widths_grow_apart_where_the_config_can_say_so(
    name: str, sizes: dict[str, Any], model_dir: ModelDir, tmp_path: Path
) -> None:
    done = hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(**sizes))
    assert done.proof is not None
    assert done.proof.passed


@pytest.mark.parametrize("name", ["phi3-longrope", "gptj-untied", "gpt2-tied", "stablelm-grouped-untied"])
@pytest.mark.parametrize("sizes", [{"hidden": "2x"}, {"heads": "2x"}], ids=str)
def test_heads_of_hidden_over_heads_do_not_grow_apart(name: str, sizes: dict[str, Any], model_dir: ModelDir) -> None:
    with pytest.raises(hyperclone.HypercloneError, match="grow hidden and heads by the same factor"):
        hyperclone.plan(model_dir(name), Growth(**sizes))


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("gpt2-tied", ["transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"]),
        ("gptj-untied", ["transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"]),
        ("phi-multihead-untied", ["model.layers.{i}.self_attn.rotary_emb.inv_freq"]),
        ("stablelm-grouped-untied", ["model.layers.{i}.self_attn.rotary_emb.inv_freq"]),
    ],
)
def test_buffers_of_old_checkpoints_are_left_out(
    name: str, buffers: list[str], model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name)
    tensors = load_file(source / "model.safetensors")
    old = tensors | {b.replace("{i}", str(i)): torch.ones(1, 1, 4, 4) for b in buffers for i in range(2)}
    old = save_changed(source, tmp_path / "old", config=config_of(source), tensors=old)
    done = hyperclone.grow(old, tmp_path / "grown", Growth(width=2))
    assert len(done.plan.dropped) == 2 * len(buffers)
    assert load_file(tmp_path / "grown/model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("name", ["qwen2-multihead-untied", "gpt2-implied-ffn", "gptj-untied", "phi-multihead-untied"])
def test_a_config_without_the_fields_that_have_defaults_grows(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir(name)
    config = config_of(source)
    defaults = registry.families()[config["model_type"]].defaults
    kept = {k: v for k, v in config.items() if v is not None and (k not in defaults or v != defaults[k])}
    assert len(kept) < len(config)
    short = save_changed(source, tmp_path / "short", config=kept, tensors=load_file(source / "model.safetensors"))
    done = hyperclone.grow(short, tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed


def test_stablelm_with_a_norm_for_every_head_is_refused_with_the_reason(tmp_path: Path) -> None:
    build("stablelm-grouped-untied", qk_layernorm=True).save_pretrained(tmp_path)
    with pytest.raises(hyperclone.HypercloneError, match="every head has norms of its own"):
        hyperclone.plan(tmp_path, Growth(width=2))


def test_phis_norms_of_queries_and_keys_keep_heads_with_hidden(model_dir: ModelDir) -> None:
    with pytest.raises(hyperclone.HypercloneError, match="q and k norms are hidden / heads long"):
        hyperclone.plan(model_dir("phi-qk-norms"), Growth(hidden="2x"))


@pytest.mark.parametrize("name", [name for name in rows_dense.ROWS if "tied" in name])
def test_any_width(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(width=1.5, allow_rounding=True))
    assert done.proof is not None
    assert done.proof.passed


def test_gptj_without_rotary_dim_is_refused_by_name(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("gptj-untied")
    config = {**config_of(source), "rotary_dim": None}
    whole = save_changed(source, tmp_path / "s", config=config, tensors=load_file(source / "model.safetensors"))
    with pytest.raises(hyperclone.HypercloneError, match="rotary_dim"):
        hyperclone.plan(whole, Growth(width=2))


def test_granites_multipliers_stay(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("granite-grouped-tied")
    hyperclone.grow(source, tmp_path / "grown", Growth(width=3), proof="structural")
    before, after = config_of(source), config_of(tmp_path / "grown")
    changed = {k for k in before if before[k] != after[k]}
    assert changed == {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"}


def test_depth_is_refused_where_a_layers_number_decides_what_it_computes(model_dir: ModelDir) -> None:
    with pytest.raises(hyperclone.HypercloneError, match="depends on the number of the layer"):
        hyperclone.plan(model_dir("gpt2-other-scales"), Growth(width=2, layers="2x"))


@pytest.mark.parametrize("model_type", sorted(registry.families()))
def test_every_list_that_the_config_class_makes_for_the_layers_is_known(model_type: str) -> None:
    family = registry.families()[model_type]
    if family.layers in family.per_layer or "deeper" in family.refuse:  # its layers are not counted by one number alone
        return
    two, nine = (CONFIG_MAPPING[model_type](**{family.layers: depth}).to_dict() for depth in (2, 9))
    changed = {field for field in two if two[field] != nine[field]} - {family.layers}
    assert changed <= {*family.per_layer, *family.deeper, "full_attn_idxs"}  # which layer_types, then written, replaces


PATTERNS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2-max-window-layers", {}),
    "qwen3": ("qwen3-grouped-tied", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "smollm3": ("smollm3-multihead-untied", {"use_sliding_window": True, "sliding_window": 8}),
    "gemma2": ("gemma2", {"sliding_window": 8}),
    "gemma3": ("gemma3", {"sliding_window": 8, "sliding_window_pattern": 3}),
    "cohere2": ("cohere2", {"sliding_window_pattern": 3}),
    "olmo3": ("olmo3", {"num_hidden_layers": 4}),
    "qwen2-moe": ("qwen2-moe", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
}


def patterned(name: str, path: Path) -> Path:
    """A model whose config leaves the lists of layers out, as older ones on the Hub do."""
    row, fields = PATTERNS[name]
    model_type, config = (models.MODELS | test_rounded_families.ROWS)[row]
    lists = ("layer_types", "no_rope_layers")
    config = {key: value for key, value in config.items() if key not in lists} | {"num_hidden_layers": 3, **fields}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config))
    randomize_parameters(model, seed=0).save_pretrained(path)
    written = config_of(path)
    (path / "config.json").write_text(json.dumps({k: v for k, v in written.items() if k not in lists} | fields))
    return path


@pytest.mark.parametrize("mode", ["identity", "stack"])
@pytest.mark.parametrize("name", PATTERNS)
def test_depth_writes_the_lists_of_layers_that_a_config_leaves_out(name: str, mode: DepthMode, tmp_path: Path) -> None:
    source = patterned(name, tmp_path / "source")
    layers = config_of(source)["num_hidden_layers"] + 2
    request = Growth(width=2, layers=layers, depth_mode=mode, dtype="fp32", allow_rounding=True)
    done = hyperclone.grow(source, tmp_path / "grown", request, proof="none" if mode == "stack" else "full")
    before, after = (AutoConfig.from_pretrained(path) for path in (source, tmp_path / "grown"))
    seen = set()
    for field in done.plan.family.per_layer:
        if (entries := getattr(before, field)) is not None:
            seen |= set(entries)
            assert getattr(after, field) == [entries[layer] for layer in done.plan.layers]
    assert len(seen) > 1
    if done.proof is not None:
        assert done.proof.passed


@pytest.mark.parametrize("name", PATTERNS)
def test_lists_of_layers_that_a_config_leaves_out_are_not_written_where_layers_stay(name: str, tmp_path: Path) -> None:
    source = patterned(name, tmp_path / "source")
    plan = hyperclone.plan(source, Growth(width=2, allow_rounding=True))
    assert plan.config.keys() == config_of(source).keys()


def test_a_config_that_transformers_cannot_read_says_so_where_its_lists_are_wanted(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir("smollm3-multihead-untied")
    config = {**config_of(source), "no_rope_layer_interval": 0, "no_rope_layers": None}
    directory = save_changed(source, tmp_path / "s", config=config, tensors=load_file(source / "model.safetensors"))
    assert hyperclone.plan(directory, Growth(width=2))
    with pytest.raises(CheckpointError, match="ZeroDivisionError") as caught:
        hyperclone.plan(directory, Growth(width=2, layers="2x"))
    assert caught.value.details["field"] == "no_rope_layers"


@pytest.mark.parametrize("heads", [8, 16])
def test_mistral_without_a_number_of_kv_heads_has_eight(heads: int, tmp_path: Path) -> None:
    sizes = {**models.MODELS["mistral-window"][1], "num_attention_heads": heads, "head_dim": 4}
    del sizes["num_key_value_heads"]
    model = randomize_parameters(AutoModelForCausalLM.from_config(CONFIG_MAPPING["mistral"](**sizes)), seed=0)
    model.save_pretrained(tmp_path / "source")
    config = {key: value for key, value in config_of(tmp_path / "source").items() if key != "num_key_value_heads"}
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    done = hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    assert config_of(tmp_path / "grown")["num_key_value_heads"] == 16


@pytest.mark.parametrize(
    "name", ["qwen2-window", "qwen3-biases-window", "smollm3-window", "phi3-longrope", "gptj-tied"]
)
def test_depth_takes_the_lists_of_layers_along(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(width=2, layers="2x"))
    assert done.proof is not None
    assert done.proof.passed


def test_gpt2_as_on_the_hub_has_names_without_prefix(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("gpt2-tied")
    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    hub = save_changed(source, tmp_path / "hub", config=config_of(source), tensors=bare)
    done = hyperclone.grow(hub, tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    assert len(done.plan.dropped) == 2
    assert hyperclone.verify(hub, tmp_path / "grown").passed
    kept = {name.removeprefix("transformer.") for name in tensors}
    assert load_file(tmp_path / "grown/model.safetensors").keys() == kept
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == kept
    assert all(again[name].equal(bare[name]) for name in kept)
