"""A growth by its parts is the growth; what is no part of one is refused, wherever a growth is taken."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

import hyperclone
from hyperclone import Growth, GrowthError
from hyperclone.planning.growth_options import GrowthOptions, requested
from tests.helpers import models


def test_the_keywords_are_the_fields_of_a_growth_and_of_their_types() -> None:
    keywords = get_type_hints(GrowthOptions, localns={"torch": torch})
    types = get_type_hints(Growth)
    assert list(keywords) == [field.name for field in fields(Growth)]
    assert set(get_args(types["dtype"])) < set(get_args(keywords.pop("dtype")))  # and torch's names
    assert keywords == {name: types[name] for name in keywords}


def test_parts_or_the_whole() -> None:
    assert requested(None, {"width": 2, "seed": 3}) == requested(Growth(width=2, seed=3), {}) == Growth(width=2, seed=3)
    growth: Any
    options: Any
    for growth, options, words in (
        (None, {"widht": 2}, ["no such option", "widht", "expected: width"]),
        (None, {"zzzz": 2}, ["no such option", "hidden, ffn"]),
        (None, {}, ["nothing says how to grow", "width=2"]),
        (Growth(width=2), {"seed": 3}, ["seed", "put it into the Growth"]),
        (2, {}, ["not a growth", "found:    2", "width=2"]),
        (None, {"width": "wide"}, ["not a width"]),
    ):
        with pytest.raises(GrowthError) as error:
            requested(growth, options)
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize("dtype", ["fp32", "float32", torch.float32, "torch.float32"])
def test_a_type_has_our_name_or_torchs(dtype: Any) -> None:
    assert Growth(width=2, dtype=dtype) == Growth(width=2, dtype="fp32")


@pytest.mark.parametrize("dtype", ["int8", torch.int8, 32, "FP32"])
def test_other_types_are_refused_by_name(dtype: Any) -> None:
    with pytest.raises(GrowthError, match=r"unknown dtype(.|\n)*bf16, fp16, fp32, fp64"):
        Growth(width=2, dtype=dtype)


def test_every_function_that_takes_a_growth_takes_its_parts(tmp_path: Path) -> None:
    model = models.build("llama-grouped-tied")
    model.save_pretrained(tmp_path / "source")
    assert hyperclone.plan(tmp_path / "source", width=2).sizes["hidden"] == (32, 64)
    grown = hyperclone.grow(tmp_path / "source", tmp_path / "grown", width=2, dtype="float64", proof="structural")
    assert grown.plan.tensors[0].dtype == "F64"
    assert hyperclone.grow_model(model, hidden="2x").config.hidden_size == 64
    misspelled: dict[str, Any] = {"widht": 2}
    for call in (
        lambda: hyperclone.plan(tmp_path / "source", **misspelled),
        lambda: hyperclone.grow(tmp_path / "source", tmp_path / "out", **misspelled),
        lambda: hyperclone.grow_model(model, **misspelled),
    ):
        with pytest.raises(GrowthError, match="widht"):
            call()
    assert not (tmp_path / "out").exists()
