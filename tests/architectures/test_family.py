"""Families as data: every shipped file says what unmodified transformers does, and errors name file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError, FamilyError, GrowthError
from hyperclone.planning import growth
from hyperclone.units import decode_floats
from tests.helpers import unmodified
from tests.helpers.models import MODELS
from tests.helpers.rows_more import ALIBI

ModelDir = Callable[..., Path]

FILE = """
model_types = ["toy"]
layers = "depth"

[defaults]
tied = true

[axes]
hidden = "width"
ffn = "4 * width"
heads = "heads"
head_dim = "width / heads"
vocab = "vocab"
embed = { size = "embed | width", grows_with = "hidden", when = "not embed" }

[write]
heads = "heads"

[tensors]
"embed" = "vocab hidden"
"h.{i}.up" = "ffn <- hidden"
"h.{i}.bias" = { line = "ffn", when = "bias" }
"norm" = "norm(hidden)"
"head" = "vocab <- hidden"

[tie]
when = "tied"
head = "head"
embedding = "embed"
fold = ["norm"]

[ignore]
tensors = ["h.{i}.mask"]

[whole]
"width / heads" = "true_only_for_toys"
"""


def load(text: str) -> Family:
    return family_file.parse(text, name="toy", file="families/toy.toml")


def config_of(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


# --- Shipped files


def test_every_shipped_file_loads_and_no_model_type_is_claimed_twice() -> None:
    files = [
        e
        for e in resources.files("hyperclone.architectures").joinpath("families").iterdir()
        if e.name.endswith(".toml")
    ]
    loaded = [family_file.parse(e.read_text("utf-8"), name=e.name, file=e.name) for e in files]
    types = [model_type for one in loaded for model_type in one.model_types]
    assert len(types) == len(set(types))
    assert set(types) == set(registry.families()) >= {model_type for model_type, _ in MODELS.values()}


@pytest.mark.parametrize("shard", ["5GB", "30KB"])
@pytest.mark.parametrize("name", MODELS | ALIBI)
def test_the_expected_tensors_are_exactly_those_that_transformers_saves(
    name: str, shard: str, model_dir: ModelDir
) -> None:
    path = model_dir(name, shard=shard)
    config = config_of(path)
    family = registry.of_config(config)
    sizes = family.sizes(config)
    expected = {name: layout.shape(sizes) for name, layout in family.tensors(config).items()}
    stored: dict[str, tuple[int, ...]] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            stored.update({key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()})  # noqa: SIM118
    assert expected == stored


def test_the_types_found_without_parsing_a_file_are_those_that_it_says() -> None:
    for family in {family.name: family for family in registry.families().values()}.values():
        assert {t for t, other in registry.families().items() if other is family} == set(family.model_types)


@pytest.mark.parametrize("model_type", sorted(registry.families()))
def test_a_field_that_a_config_leaves_out_means_what_transformers_takes_it_to_mean(model_type: str) -> None:
    from transformers import AutoConfig

    implied = {"head_dim": 128} if model_type == "glm4_moe" else {}  # 4096 / 96 is no whole number
    full = AutoConfig.for_model(model_type, **implied).to_dict()
    family = registry.of_config(full)
    short = {field: value for field, value in full.items() if field not in family.defaults}
    assert family.sizes(short) == family.sizes(full)
    assert family.conditions(short) == family.conditions(full)
    assert family.tied(short) == family.tied(full)
    stated = {field for field in family.defaults if field in full} - family.deeper.keys()  # which follow the depth
    assert {field: full[field] for field in stated} == {field: family.defaults[field] for field in stated}


GROWTHS = [
    Growth(width=2),
    Growth(width=3),
    Growth(ffn="2x"),
    Growth(hidden="2x", heads="2x"),
    Growth(hidden="2x"),
    Growth(heads="2x"),
    Growth(heads="4x", kv_heads="2x"),
]


@pytest.mark.parametrize("name", MODELS)
def test_unmodified_transformers_reads_the_intended_sizes_from_the_grown_config(name: str, model_dir: ModelDir) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = config_of(model_dir(name))
    family = registry.of_config(config)
    old = family.sizes(config)
    accepted = []
    for request in GROWTHS:
        try:
            sizes = family.grown_sizes(config, growth.resolve(request, old))
            grown = family.grown_config(config, sizes)
        except GrowthError:
            continue
        accepted.append(request)
        new = {axis: size for axis, (_, size) in sizes.items()}
        assert family.sizes(grown) == new
        read = AutoConfig.for_model(**decode_floats(grown))
        assert read.hidden_size == new["hidden"]
        assert read.num_attention_heads == (new["heads"] if "heads" in new else new["kv_heads"] * new["group"])
        assert new["head_dim"] == old["head_dim"]
        assert read.num_hidden_layers == family.depth(config)
        assert family.sizes(json.loads(read.to_json_string(use_diff=False))) == new
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read)
        assert unmodified.stored_values(model) == sum(
            math.prod(layout.shape(new)) for layout in family.tensors(grown).values()
        )
    assert accepted[:2] == GROWTHS[:2]  # a common factor is never refused
    assert GROWTHS[3] in accepted


def test_head_size_that_was_implied_is_written_out_where_it_would_change(model_dir: ModelDir) -> None:
    config = {k: v for k, v in config_of(model_dir("mistral-window")).items() if k != "head_dim"}
    family = registry.of_config(config)
    sizes = family.grown_sizes(config, growth.resolve(Growth(heads="2x"), family.sizes(config)))
    assert family.grown_config(config, sizes)["head_dim"] == 8
    assert "head_dim" not in config


@pytest.mark.parametrize("name", ["neox-parallel", "opt"])
def test_head_size_that_the_config_cannot_say_is_refused(name: str, model_dir: ModelDir) -> None:
    config = config_of(model_dir(name))
    family = registry.of_config(config)
    for request in (Growth(hidden="2x"), Growth(heads="2x")):
        sizes = family.grown_sizes(config, growth.resolve(request, family.sizes(config)))
        with pytest.raises(GrowthError, match="cannot express") as caught:
            family.grown_config(config, sizes)
        for word in ("head_dim", "hidden_size / num_attention_heads", "8 (unchanged)", "same factor"):
            assert word in str(caught.value)


def test_a_growth_that_would_make_a_tensor_come_or_go_is_refused(model_dir: ModelDir) -> None:
    """OPT with projections whose hidden size grows up to its embedding size would lose them."""
    config = {**config_of(model_dir("opt-projected-post-norm")), "word_embed_proj_dim": 64}
    family = registry.of_config(config)
    sizes = family.grown_sizes(config, growth.resolve(Growth(width=2), family.sizes(config)))
    with pytest.raises(GrowthError, match="gain or lose tensors"):
        family.grown_config(config, sizes)


def test_buffers_of_a_family_file_are_known_by_their_whole_name() -> None:
    family = family_file.parse(FILE, name="toy", file="families/toy.toml")
    assert family.ignored("h.11.mask", {})
    for other in ("h.x.mask", "h.11.masks", "h_11_mask", "other.h.11.mask"):
        assert not family.ignored(other, {})


def test_an_unknown_model_is_told_known_ones_like_it_and_how_to_add_one() -> None:
    with pytest.raises(FamilyError) as caught:
        registry.of_config({"model_type": "lama"})
    number = len(registry.families())
    for word in (
        "lama",
        f"one of the {number} types that `hyperclone families` lists, as llama,",
        "hyperclone family draft",
    ):
        assert word in str(caught.value)
    with pytest.raises(FamilyError) as caught:
        registry.of_config({"model_type": "zzz"})
    assert str(caught.value.details["expected"]).endswith("lists")


# --- Files that are wrong


def test_the_smallest_file_loads() -> None:
    family = load(FILE)
    config = {"width": 8, "heads": 2, "vocab": 10, "depth": 3}
    assert family.sizes(config) == {"hidden": 8, "ffn": 32, "heads": 2, "head_dim": 4, "vocab": 10, "embed": 8}
    assert list(family.tensors(config)) == ["embed", "h.0.up", "h.1.up", "h.2.up", "norm", "head"]
    assert family.grows_with("embed", config) == "hidden"
    assert family.grows_with("embed", {**config, "embed": 4}) == "embed"
    assert family.ignored("h.7.mask", config)
    assert family.tied(config)
    assert not family.tied({**config, "tied": False})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('layers = "depth"', "layers = ", ["not valid TOML", "line 3"]),
        ('layers = "depth"', "layers = 3", ["wrong kind", "layers", "3", "a string"]),
        ('layers = "depth"', "", ["incomplete", "layers"]),
        ('layers = "depth"', 'layers = "depth"\nlayer = "x"', ["unknown keys", "layer"]),
        ('["toy"]', '"toy"', ["wrong kind", "model_types", "a list of strings"]),
        ('["toy"]', "[3]", ["wrong kind", "model_types", "a list of strings"]),
        ("[axes]", "[axis]", ["unknown keys", "axis"]),
        ("[defaults]", "[default]", ["unknown keys", "default"]),
        ('hidden = "width"', "", ["hidden"]),
        ('head_dim = "width / heads"', "", ["these axes", "head_dim"]),
        ('heads = "heads"\nhead', 'group = "heads"\nhead', ["heads, or kv_heads and group"]),
        ('hidden = "width"', "hidden = 8", ["axes.hidden", "8"]),
        ('hidden = "width"', 'hidden = ["width"]', ["axes.hidden", "width"]),
        ('hidden = "width"', 'hidden = "width +"', ["expression not understood", "axes.hidden"]),
        ('hidden = "width"', 'hidden = "max(width, 2)"', ["expression not understood", "axes.hidden", "max(width, 2)"]),
        ('hidden = "width"', "hidden = \"__import__('os')\"", ["expression not understood", "axes.hidden"]),
        ('size = "embed | width"', 'sized = "embed"', ["unknown keys", "axes.embed", "sized"]),
        ('grows_with = "hidden"', 'grows_with = "hiden"', ["axes.embed", "hiden", "hidden"]),
        ('when = "not embed"', 'when = "not"', ["expression not understood", "axes.embed"]),
        ('when = "not embed"', "when = true", ["wrong kind", "axes.embed.when"]),
        ('heads = "heads"\n\n[tensors]', 'heads = "haeds"\n\n[tensors]', ["write.heads", "haeds", "heads"]),
        ('"vocab hidden"', '"vocab hiden"', ["does not define", "embed", "hiden", "ffn, head_dim, heads, hidden"]),
        ('"ffn <- hidden"', '"ffn <-"', ["layout line not understood", "h.{i}.up", "ffn <-"]),
        ('"ffn <- hidden"', '"ffn <- (hidden"', ["layout line not understood", "h.{i}.up", "column 15"]),
        ('"norm(hidden)"', '"norm(hidden) +"', ["layout line not understood", "norm"]),
        ('"norm(hidden)"', "{ line = 3 }", ["wrong kind", "tensors.norm.line"]),
        ('"norm(hidden)"', '{ when = "bias" }', ["incomplete", "tensors.norm", "line"]),
        ('"norm(hidden)"', "3", ["tensors.norm", "3"]),
        ('line = "ffn", when', 'line = "ffn", wen', ["unknown keys", "tensors.h.{i}.bias", "wen"]),
        ('when = "bias"', 'when = "bias and"', ["expression not understood", "tensors.h.{i}.bias"]),
        ('head = "head"', 'head = "heed"', ["does not list", "heed"]),
        ('embedding = "embed"', 'embedding = "wte"', ["does not list", "wte"]),
        ('fold = ["norm"]', 'fold = ["norms"]', ["does not list", "norms"]),
        ('fold = ["norm"]', 'fold = "norm"', ["wrong kind", "tie.fold"]),
        ('fold = ["norm"]', "", ["incomplete", "tie", "fold"]),
        ('fold = ["norm"]', 'fold = ["norm"]\nuntie = "x"', ["unknown keys", "tie", "untie"]),
        ('when = "tied"', 'when = "tied ="', ["expression not understood", "tie.when"]),
        ('"head" = "vocab <- hidden"', '"head" = "vocab hidden"', ["arrow", "tie", "head"]),
        ('["h.{i}.mask"]', '"h.{i}.mask"', ["wrong kind", "ignore.tensors"]),
        ("[ignore]\ntensors", "[ignore]\nnames", ["unknown keys", "ignore", "names"]),
        ('"width / heads" = "true', '"width //" = "true', ["expression not understood", "whole"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_naming_file_and_line(old: str, new: str, words: list[str]) -> None:
    assert FILE.count(old) == 1, old
    with pytest.raises(FamilyError) as caught:
        load(FILE.replace(old, new))
    for word in ["families/toy.toml", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, "2", None, 10_001, 10**30])
def test_a_number_of_layers_that_is_none_is_refused_at_once(depth: Any) -> None:
    config = {"width": 8, "heads": 2, "vocab": 10, "depth": depth}
    with pytest.raises(CheckpointError, match="depth"):
        load(FILE).tensors(config)
