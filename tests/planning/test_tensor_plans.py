"""What a plan says of each tensor, of the config and to the user; from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from hyperclone import Growth
from hyperclone.errors import GrowthError
from hyperclone.io.hub import Headers
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan
from tests.planning.test_messages import plan, source

SOURCE = "llama-grouped-tied"  # hidden 32, ffn 48, 2 key-value heads, 2 groups, head_dim 8, vocab 300
EMBED, UP, DOWN = (
    "model.embed_tokens.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
)
COPY, COPIED, NORM = DOWN, "model.layers.0.mlp.down_proj.weight", "model.norm.weight"

# The growth, a tensor, and what its plan has beside the defaults.
PLANS: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"width": 2}, UP, {"source": UP, "source_shape": (48, 32), "shape": (96, 64), "copied": (96, 64), "inputs": 2.0,
                        "nbytes": 4 * 96 * 64, "dtype": "F32", "factor": 1.0, "original": True, "zero": False}),
    ({"width": 2}, EMBED, {"shape": (300, 64), "copied": (300, 64), "inputs": 1.0}),
    ({"width": 2}, NORM, {"shape": (64,), "inputs": 2.0, "offset": 0.0}),  # it carries the tied head's share
    ({"hidden": 100}, UP, {"shape": (48, 100), "copied": (48, 96), "inputs": 100 / 32}),  # 4 padding channels
    ({"ffn": 100}, UP, {"shape": (100, 32), "copied": (100, 32), "inputs": 1.0}),  # uneven copies, no padding
    ({"hidden": 100}, DOWN, {"shape": (100, 48), "copied": (96, 48), "inputs": 1.0, "zero": False}),
    ({"width": 2, "dtype": "bf16"}, UP, {"dtype": "BF16", "nbytes": 2 * 96 * 64}),
    ({"width": 2, "dtype": "fp64"}, UP, {"dtype": "F64", "nbytes": 8 * 96 * 64}),
    ({"layers": "2x"}, COPIED, {"source": COPIED, "original": True, "zero": False}),
    ({"layers": "2x"}, COPY, {"source": COPIED, "original": False, "zero": True}),
    ({"layers": "2x"}, UP, {"source": UP.replace("1", "0"), "original": False, "zero": False}),
    ({"layers": "2x", "depth_mode": "stack"}, "model.layers.2.mlp.down_proj.weight",
     {"source": COPIED, "original": False, "zero": False}),
    ({"width": 2, "untie": True}, "lm_head.weight",
     {"source": EMBED, "original": False, "shape": (300, 64), "inputs": 2.0, "zero": False}),
    ({"width": 2, "untie": True}, NORM, {"inputs": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("growth", "name", "expected"), PLANS, ids=[f"{growth} {name}" for growth, name, _ in PLANS])
def test_a_tensor_is_planned(growth: dict[str, Any], name: str, expected: dict[str, Any]) -> None:
    (tensor,) = [tensor for tensor in plan(source(SOURCE), **growth).tensors if tensor.name == name]
    assert {field: getattr(tensor, field) for field in expected} == expected


def test_only_gains_of_which_the_model_stores_less_have_an_offset_and_only_where_they_change() -> None:
    wider = {tensor.name: tensor.offset for tensor in plan(source("nemotron-multihead"), width=2).tensors}
    assert set(wider.values()) == {0.0}  # the head is not tied, so gains repeat
    padded = {tensor.name: tensor.offset for tensor in plan(source("nemotron-multihead"), hidden=48).tensors}
    assert {name for name, offset in padded.items() if offset} == {
        "model.norm.weight", *(f"model.layers.{i}.{norm}.weight" for i in (0, 1)
                               for norm in ("input_layernorm", "post_attention_layernorm")),
    }  # fmt: skip
    assert set(padded.values()) == {0.0, 1.0}
    tied = {tensor.name: tensor for tensor in plan(source("nemotron-tied"), width=2).tensors}
    assert (tied["model.norm.weight"].offset, tied["model.norm.bias"].offset) == (1.0, 0.0)


def test_queries_are_rescaled_where_head_dim_grows() -> None:
    for growth, expected in (({"hidden": "2x", "head_dim": "2x"}, 4), ({"width": 2}, 0)):
        planned = plan(source("gpt2-untied"), **growth)
        rescaled = {tensor.name: tensor.queries for tensor in planned.tensors if tensor.queries}
        assert len(rescaled) == expected
        assert all(sizes == planned.sizes and "c_attn" in name for name, sizes in rescaled.items())


def at(whole: Headers, places: Mapping[str, tuple[str, int]]) -> Headers:
    """A source whose tensors are stored at these places."""
    return replace(
        whole,
        entries={
            name: replace(entry, file=places[name][0], offset=places[name][1]) for name, entry in whole.entries.items()
        },
    )


def test_tensors_are_in_the_order_of_the_sources_files_with_an_untied_head_last() -> None:
    whole = source(SOURCE)
    names = sorted(whole.entries, key=lambda name: name[::-1])  # any order
    places = {name: (("b", 100 - i) if i % 2 else ("a", i)) for i, name in enumerate(names)}
    planned = planner._tensor_plans(
        planner._target(at(whole, places), Growth(width=2, untie=True), tied=True, mixture=False)
    )
    expected = sorted(names, key=lambda name: places[name])
    assert [tensor.name for tensor in planned] == [*expected, "lm_head.weight"]
    deeper = planner._tensor_plans(planner._target(at(whole, places), Growth(layers="2x"), tied=True, mixture=False))
    assert [tensor.source for tensor in deeper] == sorted([t.source for t in deeper], key=lambda name: places[name])
    files = plan(source(SOURCE), width=2)
    stored = {name: (i, at) for i, shard in enumerate(files.shards) for name, at in shard.offsets.items()}
    assert [tensor.name for tensor in files.tensors] == sorted(stored, key=lambda name: stored[name])


# --- The config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"dtype": "float32"}, {"dtype": "bfloat16"}), ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
     ({"dtype": "float32", "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
     ({}, {"dtype": "bfloat16"})],
)  # fmt: skip
def test_the_asked_type_is_written_under_the_names_that_the_config_has(
    fields: dict[str, str], expected: dict[str, str]
) -> None:
    whole = source(SOURCE)
    config = {name: value for name, value in whole.config.items() if name not in ("dtype", "torch_dtype")}
    before = replace(whole, config={**config, **fields})
    grown = plan(before, width=2, dtype="bf16").config
    assert {name: grown[name] for name in ("dtype", "torch_dtype") if name in grown} == expected
    assert grown.keys() >= config.keys()
    kept = plan(before, width=2).config
    assert {name: kept[name] for name in ("dtype", "torch_dtype") if name in kept} == fields


def test_how_a_model_was_grown_before_and_remote_code_are_not_in_the_config_of_the_next() -> None:
    grown = plan(source(SOURCE, hyperclone={"a": 1}, auto_map={"AutoConfig": "code.Config"}), width=2)
    assert grown.config.keys() == source(SOURCE).config.keys()
    assert grown.source_config["auto_map"] == {"AutoConfig": "code.Config"}
    assert grown.config["tie_word_embeddings"] is True
    assert plan(source(SOURCE), width=2, untie=True).config["tie_word_embeddings"] is False


def test_what_a_plan_says_of_itself() -> None:
    whole = source(SOURCE)
    planned = plan(whole, width=2)
    assert planned.family is whole.family
    assert (planned.growth, planned.padding, planned.layers) == (Growth(width=2), {}, (0, 1))
    assert (planned.omitted_prefix, planned.untied, planned.dropped, planned.ties_to_check) == ("", False, (), ())
    assert planned.warnings == ()
    based = replace(whole, entries={name: replace(entry, base=True) for name, entry in whole.entries.items()})
    lacking = plan(based, width=2)
    assert lacking.omitted_prefix == "model."
    assert {name for shard in lacking.shards for name in shard.offsets} == {tensor.name for tensor in lacking.tensors}
    assert b'"embed_tokens.weight"' in lacking.shards[0].header
    assert b'"model.embed_tokens.weight"' in planned.shards[0].header


# --- Notes: what of a plan they are about

PHRASES = {
    "stays tied": "The head stays tied", "untied": "The head is untied", "rounded": "gains would have to be rounded",
    "no norm": "no last norm", "nothing to untie": "untie changes nothing", "base": "saved from its base model",
    "buffers": "will be left out", "no code": "auto_map is left out", "queries": "queries are multiplied",
    "fused": "Queries share a tensor", "copied layers": "Copied layers add nothing",
    "stacked": "Stacking layers changes", "padding": "channels copy nothing", "converted": "Weights are converted",
}  # fmt: skip
NOTED: list[tuple[str, str, dict[str, Any], set[str]]] = [
    (SOURCE, "F32", {"width": 2}, {"stays tied"}),
    (SOURCE, "F32", {"width": 2, "untie": True}, set()),
    (SOURCE, "F32", {"ffn": "2x"}, set()),  # the head reads nothing that grows
    ("llama-grouped-untied", "F32", {"width": 2, "untie": True}, {"nothing to untie"}),
    ("llama-grouped-untied", "F32", {"width": 2}, set()),
    ("opt-plain-norms", "F32", {"width": 2}, {"untied", "no norm"}),
    ("nemotron-tied", "BF16", {"width": 2}, {"untied", "rounded"}),
    ("nemotron-tied", "BF16", {"width": 2, "allow_rounding": True}, {"stays tied"}),
    ("nemotron-tied", "F32", {"width": 2}, {"stays tied"}),
    ("gemma", "BF16", {"width": 2, "allow_rounding": True}, {"stays tied"}),
    (SOURCE, "F32", {"layers": "2x"}, {"copied layers"}),
    (SOURCE, "F32", {"layers": "2x", "depth_mode": "stack"}, {"stacked"}),
    (SOURCE, "F32", {"hidden": 48}, {"stays tied", "padding"}),
    (SOURCE, "F32", {"width": 2, "dtype": "bf16"}, {"stays tied", "converted"}),
    (SOURCE, "BF16", {"width": 2, "dtype": "bf16"}, {"stays tied"}),
    ("gpt2-untied", "F32", {"hidden": "2x", "head_dim": "2x"}, {"queries", "fused"}),
    ("opt-untied", "F32", {"hidden": "2x", "head_dim": "2x"}, {"queries"}),
]


def noted(planned: Plan) -> set[str]:
    """What its notes and warnings are about."""
    texts = [*planned.notes, *planned.warnings]
    return {key for key, phrase in PHRASES.items() if any(phrase in text for text in texts)}


@pytest.mark.parametrize("case", NOTED, ids=[str(case[:3]) for case in NOTED])  # a set has no order
def test_what_is_done_without_being_asked_is_told(case: tuple[str, str, dict[str, Any], set[str]]) -> None:
    name, dtype, growth, expected = case
    assert noted(plan(source(name, dtype), **growth)) == expected


def test_layers_that_add_nothing_are_refused_where_a_norm_follows_and_stacked_ones_are_not() -> None:
    post_norm = source("opt-projected-post-norm")
    with pytest.raises(GrowthError, match="add nothing"):
        plan(post_norm, layers="2x")
    assert plan(post_norm, layers="2x", depth_mode="stack").deeper


def test_names_without_a_prefix_and_remote_code_are_told() -> None:
    whole = source(SOURCE, auto_map={"AutoConfig": "code.Config"})
    based = replace(whole, entries={name: replace(entry, base=True) for name, entry in whole.entries.items()})
    assert noted(plan(based, width=2)) == {"stays tied", "base", "no code"}


def test_a_tied_head_stays_tied_where_untying_it_would_not_spare_the_rounding() -> None:
    """Gemma multiplies its embedding by a root that bf16 does not hold."""
    exact = plan(source("nemotron-tied", "BF16"), width=2)
    assert exact.untied
    assert not exact.rounds
    assert exact.config["tie_word_embeddings"] is False
    rounded = plan(source("gemma", "BF16"), width=2, allow_rounding=True)
    assert (rounded.untied, rounded.rounds) == (False, True)
    asked = plan(source("nemotron-tied", "BF16"), width=2, allow_rounding=True)
    assert (asked.untied, asked.rounds) == (False, True)
