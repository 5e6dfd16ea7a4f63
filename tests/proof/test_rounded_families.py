"""Gemma scales its embedding, Nemotron stores gain - 1: what cannot be exact is refused, or rounded when asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import support_table
from hyperclone.errors import GrowthError
from hyperclone.planning import planner
from tests.helpers import models, rows_decoders, rows_mixtures
from tests.helpers.headers import headers

_COMMON = {
    "vocab_size": models.VOCAB, "num_hidden_layers": 3, "max_position_embeddings": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", _COMMON),
    "gemma-untied-multiquery": ("gemma", {**_COMMON, "tie_word_embeddings": False, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {**_COMMON, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {**_COMMON, "sliding_window": 8}),
    "nemotron-tied": ("nemotron", {**_COMMON, "tie_word_embeddings": True}),
    **rows_decoders.MULTIPLIED,
    **rows_mixtures.MULTIPLIED,
}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, torch.dtype], Path]:
    def make(name: str, dtype: torch.dtype) -> Path:
        monkeypatch.setitem(models.MODELS, name, ROWS[name])
        models.build(name, dtype=dtype).save_pretrained(tmp_path / "source")
        models.save_tokenizer(tmp_path / "source")
        return tmp_path / "source"

    return make


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "growth",
    [
        Growth(width=2),
        Growth(width=3, expansion="diagonal"),
        Growth(width=2, noise="gaussian"),
        Growth(width=2, untie=True),
        Growth(width=2, layers="5"),
    ],
    ids=["2x", "3x-diagonal", "gaussian", "untied", "deeper"],
)
@pytest.mark.parametrize("name", ROWS)
def test_in_fp32_the_logits_are_the_sources(name: str, growth: Growth, source: Any, tmp_path: Path) -> None:
    from tests.proof.test_proof import logits_of

    done = hyperclone.grow(source(name, torch.float32), tmp_path / "grown", growth)
    assert done.proof is not None
    assert done.proof.passed
    ids = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(1))
    before, after = logits_of(tmp_path / "source", ids), logits_of(tmp_path / "grown", ids)
    assert (after - before).norm() / before.norm() < 1e-5


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ROWS)
def test_in_bf16_rounding_has_to_be_asked_for_and_is_then_proved_within_its_bound(
    name: str, source: Any, tmp_path: Path
) -> None:
    directory = source(name, torch.bfloat16)
    with pytest.raises(GrowthError, match="--allow-rounding"):
        hyperclone.grow(directory, tmp_path / "grown", Growth(width=2))
    done = hyperclone.grow(directory, tmp_path / "grown", Growth(width=2, allow_rounding=True))
    assert done.proof is not None
    assert done.proof.passed
    # As fp32, the same growth of the same bf16 weights is exact to fp32's rounding.
    exact = hyperclone.grow(directory, tmp_path / "fp32", Growth(width=2, dtype="fp32")).proof
    assert exact is not None
    assert exact.behavior is not None
    assert max(m.relative for m in exact.behavior.measured) < 1e-5


def test_fourfold_the_root_is_a_power_of_two_and_an_untied_gemma_is_exact(source: Any, tmp_path: Path) -> None:
    directory = source("gemma-untied-multiquery", torch.bfloat16)
    done = hyperclone.grow(directory, tmp_path / "grown", Growth(width=4, kv_heads="4x"))
    assert done.proof is not None
    assert done.proof.structure.bit_equal == done.proof.structure.tensors
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact


def test_in_fp16_a_power_of_two_below_one_has_to_be_asked_for_too(source: Any, tmp_path: Path) -> None:
    """Half of a small fp16 number is no fp16 number: it has fewer bits the smaller it is."""
    directory = source("gemma-untied-multiquery", torch.float16)
    with pytest.raises(GrowthError, match="--allow-rounding"):
        hyperclone.plan(directory, Growth(width=4, kv_heads="4x"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_untied_head_and_the_embedding_that_was_rounded_go_back_to_one_source(
    dtype: torch.dtype, source: Any, tmp_path: Path
) -> None:
    directory = source("gemma", dtype)
    hyperclone.grow(directory, tmp_path / "grown", Growth(width=2, untie=True, allow_rounding=True), proof="none")
    hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    old, new = (load_file(p / "model.safetensors") for p in (directory, tmp_path / "again"))
    assert old.keys() == new.keys()
    assert all(torch.allclose(old[k], new[k], rtol=4 * torch.finfo(dtype).eps, atol=1e-6) for k in old)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_sizes_that_unmodified_transformers_does_not_accept_are_refused(name: str, source: Any) -> None:
    with pytest.raises(GrowthError, match="does not accept"):
        hyperclone.plan(source(name, torch.float32), Growth(heads=6))


def test_a_folded_gain_is_stored_less_one_and_its_copies_sum_to_the_scaled_gain(source: Any, tmp_path: Path) -> None:
    directory = source("gemma2", torch.float32)
    hyperclone.grow(directory, tmp_path / "grown", Growth(width=2), proof="none")
    old, new = (
        load_file(p / "model.safetensors")["model.norm.weight"].double() for p in (directory, tmp_path / "grown")
    )
    assert torch.allclose((1 + new[:32]) + (1 + new[32:]), (1 + old) * 2**0.5, rtol=1e-6)


def test_gemma3s_shared_eps_keeps_hidden_at_multiples(source: Any) -> None:
    with pytest.raises(GrowthError, match="multiples of 32"):
        hyperclone.plan(source("gemma3", torch.float32), Growth(hidden=40))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", [*ROWS, "llama-grouped-tied", "olmo2"])
def test_untying_is_named_as_the_cure_where_it_makes_the_growth_exact_and_nowhere_else(
    name: str, dtype: Literal["bf16", "fp16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MODELS", models.MODELS | ROWS)
    monkeypatch.setattr("tests.helpers.headers.MODELS", models.MODELS)
    source, named = headers(name), set()
    for width in (2, 3, 4, 16):
        growth = Growth(width=width, dtype=dtype)
        try:
            planner.make_plan(source, growth)
            continue
        except GrowthError as error:
            message = error
        try:
            untied = not planner.make_plan(source, replace(growth, untie=True)).rounds
        except GrowthError:
            untied = False
        assert ("--untie" in message.details["cure"]) == untied, (width, message)
        named |= {width} if untied else set()
    notes = " ".join(support_table.notes(source.family))
    assert ("only with --untie" in notes) == (source.family.gain_offset != 0)
    if "untied" in name or not source.family.gain_offset:
        assert not named
    elif source.family.multiplied:
        assert named == ({4, 16} if dtype == "bf16" else set())  # in fp16, the factor 1/2 makes small weights smaller
    else:
        assert named == {2, 3, 4, 16}


def test_with_the_head_untied_gemma_grows_exactly_by_4x_in_bf16(source: Any, tmp_path: Path) -> None:
    directory = source("gemma2", torch.bfloat16)
    with pytest.raises(GrowthError, match=r"gains of which 1 is not stored(.|\n)*--untie"):
        hyperclone.plan(directory, Growth(width=4))
    grown = hyperclone.grow(directory, tmp_path / "grown", Growth(width=4, untie=True))
    assert grown.proof is not None
    assert grown.proof.passed
    assert grown.proof.structure.rounded == 0
    assert grown.proof.structure.bit_equal == grown.proof.structure.tensors
