"""Larger heads: queries are scaled so that every score stays, where positions allow it; refused elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import hyperclone
from hyperclone import Growth
from hyperclone.architectures.layout import parse
from hyperclone.conversion.in_memory import InMemory
from hyperclone.errors import GrowthError
from hyperclone.expansion.copy_map import of_dim
from hyperclone.expansion.query_rows import row_factors
from hyperclone.planning import planner
from tests.helpers.edits import forget_growth
from tests.helpers.models import MODELS, build, save_tokenizer
from tests.optim.test_symmetry import one_group, train
from tests.proof.test_proof import IDS, logits_of, source_logits
from tests.proof.test_rounded_families import ROWS as ROUNDED

ModelDir = Callable[..., Path]
NAMES = [
    "opt",
    "opt-untied",
    "opt-no-bias",
    "opt-projected-post-norm",
    "gpt2-tied",
    "gpt2-untied",
    "bloom",
    "bloom-untied-post-norm",
    "mpt",
    "mpt-untied-odd-heads",
]
GROWTHS = {
    "2x": Growth(width=2, head_dim="2x"),
    "3x-diagonal": Growth(width=3, head_dim="3x", expansion="diagonal", noise="none"),
    "4x": Growth(width=4, head_dim="4x"),
    "gaussian": Growth(hidden="2x", head_dim="2x", noise="gaussian"),
}


def apart(source: Path, grown: Path) -> float:
    before, after = source_logits(source), logits_of(grown, IDS)
    return float((after - before).norm() / before.norm())


# --- The arithmetic


@given(
    line=st.sampled_from(["query(heads head_dim)", "(query(heads head_dim) + 2 heads head_dim)",
                          "(heads (query(head_dim) + 2 head_dim))"]),
    n=st.integers(1, 3), d=st.integers(1, 5), more=st.integers(0, 12), seed=st.integers(0, 99),
)  # fmt: skip
def test_scores_of_every_head_stay_for_any_head_dim(line: str, n: int, d: int, more: int, seed: int) -> None:
    """Against attention itself: softmax is left out, since equal scores are all that it needs."""
    sizes = {"heads": (n, n), "head_dim": (d, d + more)}
    old = {axis: pair[0] for axis, pair in sizes.items()}
    (dim,) = parse(line).dims
    rows = of_dim(dim, sizes)
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(7, rows.old, generator=generator, dtype=torch.float64)  # fused q, k, v of 7 positions
    grown = (states * row_factors(dim, sizes))[:, rows.source]

    def q_and_k(fused: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        if line.startswith("query"):  # keys are a tensor of their own, and only repeat
            keys = states[:, rows.source] if head_dim != d or fused is grown else states
            return fused.view(7, n, head_dim), keys.view(7, n, head_dim)
        if line.startswith("(query"):
            q, k, _ = fused.view(7, 3, n, head_dim).unbind(1)
        else:
            q, k, _ = fused.view(7, n, 3, head_dim).unbind(2)
        return q, k

    def scores(fused: torch.Tensor, head_dim: int) -> torch.Tensor:
        q, k = q_and_k(fused, head_dim)
        return torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)

    assert parse(line).shape(old) == (rows.old,)
    assert torch.allclose(scores(grown, d + more), scores(states, d), atol=1e-12)


def test_only_queries_are_scaled() -> None:
    layout = parse("hidden -> (query(heads head_dim) + 2 heads head_dim)")
    assert layout.queries
    assert not layout.only_queries
    assert parse("query(heads head_dim) <- hidden").only_queries
    factors = row_factors(layout.dims[1], {"heads": (2, 2), "head_dim": (3, 12)})
    assert factors.tolist() == [0.5] * 6 + [1.0] * 12


# --- Whole models


@pytest.mark.quick(4)
@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize("name", NAMES)
def test_the_grown_model_has_the_sources_logits(name: str, growth: Growth, model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir(name), tmp_path / "grown", growth)
    assert done.proof is not None
    assert done.proof.passed
    assert done.plan.widths()["head dimension"][1] > done.plan.widths()["head dimension"][0]
    assert apart(model_dir(name), tmp_path / "grown") < 2e-6


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gpt2-tied", "mpt", "mpt-untied-odd-heads"])
def test_head_dim_need_not_be_a_multiple(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(width=1.5, head_dim="1.5x"))
    assert done.proof is not None
    assert done.proof.passed
    assert apart(model_dir(name), tmp_path / "grown") < 2e-6


def test_heads_and_their_size_grow_together(model_dir: ModelDir, tmp_path: Path) -> None:
    growth = Growth(hidden="4x", heads="2x", head_dim="2x", ffn="3x")
    assert hyperclone.grow(model_dir("opt"), tmp_path / "grown", growth).proof
    assert apart(model_dir("opt"), tmp_path / "grown") < 2e-6


@pytest.mark.parametrize("name", ["opt", "gpt2-tied", "bloom", "mpt"])
def test_fourfold_the_factor_is_a_half_so_bf16_collapses_bit_for_bit(
    name: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name, dtype=torch.bfloat16)
    with pytest.raises(GrowthError, match="allow-rounding"):
        hyperclone.plan(source, Growth(width=2, head_dim="2x"))
    hyperclone.grow(source, tmp_path / "grown", Growth(width=4, head_dim="4x"), proof="structural")
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)


def test_a_scaled_query_that_is_changed_fails_the_structural_proof(model_dir: ModelDir, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    hyperclone.grow(model_dir("gpt2-tied"), tmp_path / "grown", Growth(width=2, head_dim="2x"), proof="none")
    forget_growth(tmp_path / "grown")  # the plan then comes from the two configs
    assert hyperclone.verify(model_dir("gpt2-tied"), tmp_path / "grown").passed
    tensors = load_file(tmp_path / "grown/model.safetensors")
    tensors["transformer.h.1.attn.c_attn.weight"][:, :64] *= 2**0.5  # as if nobody had scaled them
    save_file(tensors, tmp_path / "grown/model.safetensors", {"format": "pt"})
    wrong = hyperclone.verify(model_dir("gpt2-tied"), tmp_path / "grown")
    assert not wrong.passed
    assert any("h.1.attn.c_attn.weight" in failure for failure in wrong.failures)


def test_width_grows_the_heads_size_or_their_number() -> None:
    sizes = {"hidden": 32, "ffn": 64, "heads": 4, "head_dim": 8}
    from hyperclone.planning.growth import resolve

    assert resolve(Growth(width=2), sizes) == {"hidden": 64, "ffn": 128, "heads": 8, "head_dim": 8}
    assert resolve(Growth(width=2, head_dim=16), sizes) == {"hidden": 64, "ffn": 128, "heads": 4, "head_dim": 16}


# --- What is refused


def saved(path: Path, name: str, **overrides: Any) -> Path:
    build(name, **overrides).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.mark.parametrize("name", ["llama-free-head-dim", "neox-parallel", "qwen3-grouped-tied", "gptj-tied", "cohere2"])
def test_rotary_heads_are_refused_with_the_reason(name: str, model_dir: ModelDir) -> None:
    with pytest.raises(GrowthError, match="frequencies"):
        hyperclone.plan(model_dir(name), Growth(hidden="2x", head_dim="2x"))


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_alibi_keeps_the_number_of_heads_and_says_what_grows_instead(name: str, model_dir: ModelDir) -> None:
    for growth in (Growth(width=2), Growth(hidden="4x", heads="2x", head_dim="2x")):
        with pytest.raises(GrowthError, match=r"slope of a head's ALiBi.*--head-dim"):
            hyperclone.plan(model_dir(name), growth)
    with pytest.raises(GrowthError, match="head_dim"):
        hyperclone.plan(model_dir(name), Growth(hidden="2x"))
    with pytest.raises(GrowthError, match="grows with hidden"):
        hyperclone.plan(model_dir(name), Growth(ffn="2x"))


def test_blooms_norm_after_the_embedding_allows_no_padding_channels(model_dir: ModelDir) -> None:
    with pytest.raises(GrowthError, match="multiples of 32"):
        hyperclone.plan(model_dir("bloom"), Growth(width=1.5, head_dim="1.5x"))


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("gpt2-tied", {"scale_attn_weights": False}, "not divided by the root"),
        ("mpt", {"attn_config": {"softmax_scale": 0.3}}, "softmax_scale"),
        ("mpt", {"attn_config": {"clip_qkv": 4.0}}, "clipped"),
    ],
)
def test_attention_of_another_scale_is_refused(name: str, fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", name, **fields)
    with pytest.raises(GrowthError, match=reason):
        hyperclone.plan(source, Growth(width=2, head_dim="2x"))


# --- Training


@pytest.mark.parametrize("name", ["opt", "opt-untied"])
def test_the_scaling_rule_knows_the_scale_of_queries(name: str) -> None:
    source = build(name, dtype=torch.float64, dropout=0.0).train()
    growth = Growth(width=2, head_dim="2x", noise="none")
    grown = hyperclone.grow_model(source, growth).train()
    plan = planner.make_plan(InMemory(source), growth)
    groups = hyperclone.param_groups(
        grown, lr=3e-3, weight_decay=0.1, eps=1e-6, receipt=plan, decay_norms_and_biases=True
    )
    expected = train(source, one_group(source))
    assert train(grown, groups) == pytest.approx(expected, abs=2e-6)


def test_a_plan_says_where_fused_queries_leave_the_scaling_rule(model_dir: ModelDir) -> None:
    fused = hyperclone.plan(model_dir("gpt2-tied"), Growth(width=2, head_dim="2x"))
    apart = hyperclone.plan(model_dir("opt"), Growth(width=2, head_dim="2x"))
    assert any("multiplied by 0.707" in note for note in fused.notes)
    assert any("share a tensor" in note for note in fused.notes)
    assert not any("share a tensor" in note for note in apart.notes)


def test_a_models_multiplied_embedding_is_in_the_scaling_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's embedding shrinks by sqrt(d / D), so it must also move by that much less."""
    monkeypatch.setitem(MODELS, "gemma", ROUNDED["gemma"])
    tensors = planner.make_plan(InMemory(build("gemma")), Growth(width=4, noise="none")).tensors
    embedding = next(t for t in tensors if t.name == "model.embed_tokens.weight")
    assert (embedding.scale, embedding.gradient) == (0.5, 0.5)
