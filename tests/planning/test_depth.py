"""What a config says about single layers, after each of them has been copied."""

from __future__ import annotations

from typing import Any

import pytest

from hyperclone import Growth
from hyperclone.planning import planner
from hyperclone.planning.depth import layer_map, originals
from tests.planning.test_messages import source

FULL, SLIDING = "full_attention", "sliding_attention"

# A row of MODELS, changes of its config, the growth, and fields of the grown config; fields that are None are left out.
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a list": ("qwen2-window", {}, {"layers": "2x"}, {"layer_types": [FULL, FULL, SLIDING, SLIDING]}),
    "a list, stacked": ("qwen2-window", {}, {"layers": "2x", "depth_mode": "stack"},
                        {"layer_types": [FULL, SLIDING, FULL, SLIDING]}),
    "a list that transformers derives": (
        "qwen2-window", {"layer_types": None, "max_window_layers": 1}, {"layers": "1.5x", "width": 2},
        {"layer_types": [FULL, FULL, SLIDING]}),
    "two lists, one of them derived": (
        "smollm3-grouped-tied", {"no_rope_layers": None, "no_rope_layer_interval": 2, "layer_types": [SLIDING, FULL]},
        {"layers": "2x"}, {"no_rope_layers": [1, 1, 0, 0], "layer_types": [SLIDING, SLIDING, FULL, FULL]}),
    "numbers of layers": ("qwen3-moe-first-dense", {}, {"layers": "2x"},
                          {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1}),
    "every second layer and a list": (  # of four layers only the last has experts
        "qwen3-moe-every-second-tied", {}, {"layers": 8}, {"mlp_only_layers": [0, 1, 2, 3, 4, 5],
                                                           "decoder_sparse_step": 1}),
    "a list that its config class does not know": ("olmo2", {}, {"layers": "2x"}, {}),  # OLMo 3's does
    "no list at all": ("llama-multihead", {}, {"layers": "2x"}, {}),
    "a list that the family does not know": ("qwen2-window", {"other": [1, 2]}, {"layers": "2x"},
                                               {"other": [1, 2], "layer_types": [FULL, FULL, SLIDING, SLIDING]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS)
def test_copied_layers_keep_what_the_config_says_of_their_originals(
    case: tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]],
) -> None:
    name, changes, growth, expected = case
    before = source(name, **changes)
    for field in [field for field, value in changes.items() if value is None]:
        del before.config[field]
    plan = planner.make_plan(before, Growth(**growth))
    assert plan.config.items() >= expected.items()
    assert plan.config["num_hidden_layers"] == len(plan.layers)
    widths = {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"}
    assert {
        field for field, value in plan.config.items() if before.config.get(field) != value
    } <= expected.keys() | widths


def test_without_new_layers_lists_stay_as_they_are_or_left_out() -> None:
    for types in ([FULL, SLIDING], None):
        plan = planner.make_plan(source("qwen2-window", layer_types=types), Growth(width=2))
        assert plan.config["layer_types"] == types


def test_the_layers_of_a_name_are_those_of_the_family() -> None:
    plan = planner.make_plan(source("gpt2-tied"), Growth(layers="2x"))
    assert (plan.config["n_layer"], plan.source_config["n_layer"]) == (4, 2)


def test_copies_follow_their_originals_and_are_none_themselves() -> None:
    assert layer_map(2, 5, stack=False) == (0, 0, 0, 1, 1)
    assert layer_map(3, 7, stack=True) == (0, 1, 2, 0, 1, 2, 0)
    assert originals((0, 0, 0, 1, 1)) == (True, False, False, True, False)
    assert originals((0, 1, 0, 1, 0)) == (True, True, False, False, False)
    assert layer_map(3, 3, stack=False) == (0, 1, 2)
    assert layer_map(1, 3, stack=False) == layer_map(1, 3, stack=True) == (0, 0, 0)
    for old, new in ((3, 2), (0, 2)):
        with pytest.raises(AssertionError):
            layer_map(old, new, stack=False)
