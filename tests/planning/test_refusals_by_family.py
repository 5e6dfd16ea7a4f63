"""Refusals that a family file words: each says what this model has, and what it names works."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from hyperclone.errors import GrowthError
from hyperclone.io.hub import Headers
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from tests.helpers.headers import headers


def with_config(name: str, **fields: Any) -> Headers:
    """The headers of a row for a config with other fields."""
    source = headers(name)
    return replace(source, config={**source.config, **fields})


@pytest.mark.parametrize("growth", [{"head_dim": 16}, {"hidden": "2x", "head_dim": 16}, {"hidden": "2x"}, {"width": 2}])
def test_a_falcon_with_alibi_is_told_of_alibi_and_of_what_can_grow(growth: dict[str, Any]) -> None:
    source = with_config("falcon-refined-web", alibi=True)
    with pytest.raises(GrowthError) as refused:
        planner.make_plan(source, Growth(**growth))
    assert "ALiBi" in str(refused.value)
    assert "rotary" not in str(refused.value)
    assert "--ffn and --layers can grow" in str(refused.value)
    assert planner.make_plan(source, Growth(ffn="2x", layers="2x")).deeper
    with pytest.raises(GrowthError, match="rotary"):
        planner.make_plan(headers("falcon-refined-web"), Growth(head_dim=16))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt_neo", "not divided by the root of head_dim"),
        ("granitemoehybrid", "attention_multiplier"),
        ("jamba", "no positions"),
        ("nemotron_h", "no positions"),
        ("llama-grouped-tied", "rotary"),
    ],
)
def test_why_heads_cannot_be_larger_is_told_by_what_the_model_has(name: str, words: str) -> None:
    with pytest.raises(GrowthError, match=words) as refused:
        planner.make_plan(headers(name), Growth(head_dim="2x", heads="1x"))
    assert ("rotary" in str(refused.value)) == (words == "rotary")


def test_an_lfm2_with_a_multiplier_is_told_the_size_that_makes_it_grow() -> None:
    source = headers("lfm2-rounded")
    stored = Headers.from_config({**source.config, "intermediate_size": 56, "block_auto_adjust_ff_dim": False})
    multiplied = replace(stored, config={**source.config, "block_ffn_dim_multiplier": 1.5})
    with pytest.raises(GrowthError, match="intermediate_size") as refused:
        planner.make_plan(multiplied, Growth(width=2))
    found = refused.value.details["found"]
    assert found == "ffn 56 in model.layers.0.feed_forward.w1.weight, 40 by the config"
    size = re.match(r"ffn (\d+)", found)
    assert size is not None
    mended = {**multiplied.config, "intermediate_size": int(size[1]), "block_auto_adjust_ff_dim": False}
    assert planner.make_plan(replace(multiplied, config=mended), Growth(width=2)).sizes["ffn"] == (56, 112)
