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
@pytest.mark.parametrize("name", sorted(ROWS.keys() - {"nemotron-tied"}))
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


@pytest.mark.parametrize(("name", "growth"), [("nemotron-tied", Growth(width=2)), ("gemma3", Growth(width="4x"))])
def test_a_tied_bf16_model_that_is_exact_untied_grows_without_being_asked(
    name: str, growth: Growth, source: Any, tmp_path: Path
) -> None:
    done = hyperclone.grow(source(name, torch.bfloat16), tmp_path / "grown", growth)
    assert done.plan.untied
    assert done.proof is not None
    assert done.proof.passed
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
    hyperclone.grow(directory, tmp_path / "grown", Growth(width=2, order="tiled"), proof="none")
    old, new = (
        load_file(p / "model.safetensors")["model.norm.weight"].double() for p in (directory, tmp_path / "grown")
    )
    assert torch.allclose((1 + new[:32]) + (1 + new[32:]), (1 + old) * 2**0.5, rtol=1e-6)


@pytest.mark.parametrize("growth", [Growth(hidden="1.5x"), Growth(width=2.5, untie=True)], ids=["tied", "untied"])
def test_gemma3_grows_to_any_size_though_its_norms_share_their_eps(growth: Growth, source: Any, tmp_path: Path) -> None:
    done = hyperclone.grow(source("gemma3", torch.float32), tmp_path / "grown", growth)
    assert done.proof is not None
    assert done.proof.passed
    embedding = next(tensor for tensor in done.plan.tensors if tensor.name == "model.embed_tokens.weight")
    assert embedding.factor == (32 // 32 * (2 if growth.untie else 1)) ** -0.5  # sqrt(d/D) sqrt(D/(k d))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", [*ROWS, "llama-grouped-tied", "olmo2"])
def test_a_head_is_untied_where_that_alone_makes_the_growth_exact(
    name: str, dtype: Literal["bf16", "fp16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MODELS", models.MODELS | ROWS)
    monkeypatch.setattr("tests.helpers.headers.MODELS", models.MODELS)
    source, untied = headers(name), set()
    for width in (2, 3, 4, 16):
        growth = Growth(width=width, dtype=dtype)
        exact_tied, exact_untied = (
            not planner.make_plan(source, replace(growth, allow_rounding=True, untie=untie)).rounds
            for untie in (False, True)
        )
        if not exact_tied and not exact_untied:
            with pytest.raises(GrowthError, match="--dtype fp32"):
                planner.make_plan(source, growth)
            continue
        plan = planner.make_plan(source, growth)
        assert not plan.rounds
        assert plan.untied == (exact_untied and not exact_tied)
        assert plan.untied == ("The head is untied, since" in " ".join(plan.notes))
        untied |= {width} if plan.untied else set()
    assert untied == {
        ("gemma", "bf16"): {4, 16}, ("gemma2", "bf16"): {4, 16}, ("gemma3", "bf16"): {4, 16},
        ("vaultgemma", "bf16"): {4, 16},
        ("nemotron-tied", "bf16"): {2, 3, 4, 16}, ("nemotron-tied", "fp16"): {2, 3, 4, 16},
    }.get((name, dtype), set())  # fmt: skip
