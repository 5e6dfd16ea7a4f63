"""Sizes that are no multiples, and more layers: the logits stay the source's, or the growth is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.errors import GrowthError
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.proof.structural import prove_structure
from tests.helpers.command import call
from tests.helpers.edits import forget_growth
from tests.helpers.models import build
from tests.proof.test_proof import IDS, logits_of, source_logits

ModelDir = Callable[..., Path]

SIZES: list[tuple[str, dict[str, Any]]] = [
    ("llama-grouped-tied", {"hidden": 48}),
    ("llama-grouped-tied", {"hidden": "2.5x", "ffn": 100}),
    ("llama-grouped-untied", {"width": 1.5}),
    ("llama-grouped-untied", {"hidden": 40, "heads": 10}),
    ("llama-multiquery-tied", {"hidden": 42, "heads": 7}),
    ("llama-biases", {"hidden": 36}),
    ("mistral-window", {"heads": 6}),
    ("mistral-window", {"hidden": 33}),
    ("neox-parallel", {"hidden": 40, "heads": 5, "ffn": 50}),
    ("neox-tied", {"hidden": 56, "heads": 7}),
    ("opt", {"ffn": 50}),
    ("opt", {"layers": 5, "width": 2}),
    ("llama-grouped-tied", {"layers": "1.5x"}),
    ("llama-grouped-untied", {"layers": "2x", "hidden": 48}),
    ("neox-sequential", {"layers": "2x"}),
    # The norms' eps is fixed or shared: what writes the hidden state is scaled.
    ("qwen3-grouped-tied", {"hidden": 40}),
    ("qwen3-moe-first-dense", {"width": 1.5}),
    ("olmo", {"hidden": "2.5x"}),
    ("olmo-tied", {"width": 1.5}),
    ("olmo2-tied-biases", {"hidden": "1.5x"}),
    ("exaone4-multihead-tied", {"width": 1.5, "layers": "1.5x"}),
    ("opt", {"width": 1.5}),
    ("opt-untied", {"width": 1.25}),
    ("opt-plain-norms", {"width": 1.5}),
    ("cohere-head-norms", {"width": 1.5}),
    ("phi-qk-norms", {"width": 1.5}),
]


@pytest.mark.quick(6)
@pytest.mark.parametrize("options", [{}, {"expansion": "diagonal"}, {"noise": "none"}], ids=["", "diagonal", "plain"])
@pytest.mark.parametrize(("name", "sizes"), SIZES, ids=str)
def test_logits_are_the_sources_at_any_size(
    name: str, sizes: dict[str, Any], options: dict[str, Any], model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(**sizes, **options), proof="structural")
    assert done.proof is not None
    assert done.proof.passed
    before, after = source_logits(source), logits_of(tmp_path / "grown", IDS)
    assert (after - before).norm() / before.norm() < 2e-6


@pytest.mark.parametrize(
    ("name", "eps"),
    [("qwen3-grouped-tied", "rms_norm_eps"), ("olmo2-tied-biases", "rms_norm_eps"),
     ("exaone4-multihead-tied", "rms_norm_eps"), ("cohere-head-norms", "layer_norm_eps")],
)  # fmt: skip
def test_every_norm_finds_the_old_mean_square_also_where_eps_is_large(name: str, eps: str, tmp_path: Path) -> None:
    large: dict[str, Any] = {eps: 0.3}
    build(name, **large).save_pretrained(tmp_path / "source")
    hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(hidden="1.5x"), proof="structural")
    before, after = (logits_of(tmp_path / path, IDS) for path in ("source", "grown"))
    assert (after - before).norm() / before.norm() < 2e-6


@pytest.mark.quick(2)
@pytest.mark.parametrize(("name", "sizes"), SIZES, ids=str)
def test_the_full_proof_passes_and_collapse_gives_the_source(
    name: str, sizes: dict[str, Any], model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(**sizes))
    assert done.proof is not None
    assert done.proof.passed
    exact = hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact
    assert exact or done.plan.rounds
    one, two = (load_file(p / "model.safetensors") for p in (source, tmp_path / "again"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], rtol=1e-6, atol=0) for key in one)


def test_bf16_asks_before_it_rounds(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    with pytest.raises(GrowthError, match="--allow-rounding"):
        hyperclone.plan(source, Growth(hidden=48))
    done = hyperclone.grow(source, tmp_path / "grown", Growth(hidden=48, dtype="fp32"))
    assert done.proof is not None
    assert done.proof.behavior is not None
    assert max(m.relative for m in done.proof.behavior.measured) < 1e-5


def test_padding_channels_are_free_to_learn_and_invisible_at_the_start(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("llama-grouped-untied"), tmp_path / "grown", Growth(hidden=40), proof="structural")
    new = load_file(tmp_path / "grown/model.safetensors")
    assert not new["model.embed_tokens.weight"][:, 32:].any()
    assert not new["model.layers.0.mlp.down_proj.weight"][32:].any()
    reads = new["model.layers.0.mlp.up_proj.weight"]
    assert reads[:, 32:].square().mean().sqrt() == pytest.approx(float(reads[:, :32].square().mean().sqrt()), rel=0.3)


def test_a_copied_layer_adds_nothing(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(layers="2x"), proof="structural")
    new = load_file(tmp_path / "grown/model.safetensors")
    for kind in ("self_attn.out_proj", "fc2"):
        assert new[f"model.decoder.layers.0.{kind}.weight"].any()
        assert not new[f"model.decoder.layers.1.{kind}.weight"].any()
        assert not new[f"model.decoder.layers.1.{kind}.bias"].any()


def test_stacking_is_measured_not_judged_and_said_loudly(model_dir: ModelDir, tmp_path: Path) -> None:
    growth = Growth(layers="2x", width=2, depth_mode="stack")
    done = hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", growth)
    assert any("changes the function" in warning for warning in done.plan.warnings)
    assert done.proof is not None
    assert done.proof.verdict == "changed"
    assert not done.proof.passed
    assert done.proof.behavior is not None
    assert max(m.relative for m in done.proof.behavior.measured) > 0.01
    assert "computes the same function" not in (tmp_path / "grown/README.md").read_text()
    arguments = ["verify", model_dir("llama-grouped-tied"), tmp_path / "grown", "--proof", "structural"]
    for more, code in (([], 1), (["--allow-changed"], 0)):
        verified = call(*arguments, *more)
        assert verified.returncode == code
        assert "CHANGED" in verified.stdout
        assert "PROVED" not in verified.stdout
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("opt-projected-post-norm", {"width": 1.5}, "multiples of 32"),
        ("bloom", {"hidden": 48, "head_dim": "1.5x"}, "multiples of 32"),
        ("olmo2", {"width": 1.5}, "kv_heads of this model can only grow to multiples of 2"),
        ("opt-projected-post-norm", {"layers": "1.5x"}, "add nothing"),
        ("neox-parallel", {"hidden": 40}, "head_dim"),
        ("llama-grouped-tied", {"width": 1.3}, "41 or 42"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_reason(
    name: str, sizes: dict[str, Any], reason: str, model_dir: ModelDir
) -> None:
    with pytest.raises(GrowthError, match=reason):
        hyperclone.plan(model_dir(name), Growth(**sizes))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_weights_that_read_padding_channels_may_be_any_number_but_must_be_one(
    value: float, model_dir: ModelDir, tmp_path: Path
) -> None:
    """Infinity times the zero that they read would be no number."""
    source = model_dir("llama-grouped-tied")
    grown = hyperclone.grow(source, tmp_path / "grown", Growth(hidden="1.5x"), proof="structural")
    forget_growth(tmp_path / "grown")  # else its hashes tell of any change
    weights = load_file(tmp_path / "grown/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    for changed, passes in ((3.0, True), (value, False)):
        weights[name][0, -1] = changed
        save_file(weights, tmp_path / "grown/model.safetensors", {"format": "pt"})
        structure = prove_structure(Checkpoint.open(source), tmp_path / "grown", grown.plan)
        assert structure.passed is passes
        assert [failure.split(":")[0] for failure in structure.failures] == ([] if passes else [name])
