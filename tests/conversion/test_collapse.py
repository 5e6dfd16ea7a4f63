"""collapse gives the source back from a grown directory, and refuses once its copies have diverged."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.errors import CollapseError
from hyperclone.planning.plan import TensorPlan
from hyperclone.proof.proof import ProofKind
from tests.helpers.models import FULLY, REPRESENTATIVE

ModelDir = Callable[..., Path]


def same_weights(a: Path, b: Path) -> bool:
    one, two = ({k: v for f in sorted(p.glob("*.safetensors")) for k, v in load_file(f).items()} for p in (a, b))
    return one.keys() == two.keys() and all(
        one[k].dtype == two[k].dtype
        and one[k].contiguous().flatten().view(torch.uint8).equal(two[k].contiguous().flatten().view(torch.uint8))
        for k in one
    )


@pytest.mark.quick(9)
# Sums that must come out exact are hardest in bf16: every kind of row in that, one of each kind in the others.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in FULLY for dtype in (torch.bfloat16, torch.float16, torch.float32)
     if dtype == torch.bfloat16 or name in REPRESENTATIVE],
    ids=str,
)  # fmt: skip
def test_collapse_gives_the_source_back_bit_for_bit(
    name: str, dtype: torch.dtype, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name, dtype=dtype)
    hyperclone.grow(source, tmp_path / "grown", Growth(width=3), proof="structural")
    done = hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert done.exact
    assert same_weights(source, tmp_path / "again")
    again, original = ((p / "config.json").read_text() for p in (tmp_path / "again", source))
    assert json.loads(again) == json.loads(original)
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_an_untied_head_goes_back_into_the_tie(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2, untie=True), proof="structural")
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact
    assert same_weights(source, tmp_path / "again")


@pytest.mark.parametrize(
    ("growth", "proof", "exact", "reason"),
    [(Growth(width=2), "structural", True, ""),
     (Growth(width=2), "none", None, "the receipt records none, since the model was grown without a proof"),
     (Growth(width=2, dtype="bf16"), "structural", None, "the source was converted to bf16 when it was grown"),
     (Growth(hidden=40), "structural", False, "5 tensors were multiplied by a factor and rounded (model")],
    ids=["exact", "no proof", "converted", "rounded"],
)  # fmt: skip
def test_why_a_source_is_not_exact_or_was_not_compared_is_said(
    growth: Growth, proof: ProofKind, exact: bool | None, reason: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", growth, proof=proof)
    done = hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert done.exact is exact
    assert done.reason.startswith(reason)
    assert bool(done.reason) == (not exact)


def test_shards_and_threads_make_no_difference(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("neox-parallel", shard="40KB")
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="structural", shard_size="60KB", threads=3)
    hyperclone.collapse(tmp_path / "grown", tmp_path / "again", shard_size="30KB", threads=1)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    assert same_weights(source, tmp_path / "again")


def test_gaussian_noise_collapses_to_the_source_up_to_rounding(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-untied")
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2, noise="gaussian"), proof="structural")
    done = hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert done.exact is False
    assert done.reason == "Gaussian noise sums to zero only up to rounding"
    one, two = (load_file(p / "model.safetensors") for p in (source, tmp_path / "again"))
    assert all(torch.allclose(one[k], two[k], atol=1e-6, rtol=1e-6) for k in one)


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_a_trained_directory_is_refused_by_name(tensor: str, model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied")
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2, untie=True), proof="structural")
    weights = load_file(tmp_path / "grown/model.safetensors")
    weights[tensor] += 1e-3 * torch.randn(weights[tensor].shape)
    save_file(weights, tmp_path / "grown/model.safetensors", {"format": "pt"})
    with pytest.raises(CollapseError, match=tensor.replace(".", r"\.")):
        hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_nothing_is_left_of_a_refused_collapse(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("llama-grouped-untied"), tmp_path / "grown", Growth(experts=2), proof="structural")
    weights = load_file(tmp_path / "grown/model.safetensors")
    name = max(name for name in weights if ".experts.1." in name)
    weights[name] += 1
    save_file(weights, tmp_path / "grown/model.safetensors", {"format": "pt"})
    with pytest.raises(CollapseError, match="no longer a copy"):
        hyperclone.collapse(tmp_path / "grown", tmp_path / "again", shard_size=20_000)
    assert [path.name for path in tmp_path.iterdir()] == ["grown"]


def test_a_trained_folded_norm_has_no_copies_to_compare_but_its_hash_tells(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), proof="structural")
    weights = load_file(tmp_path / "grown/model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, tmp_path / "grown/model.safetensors", {"format": "pt"})
    with pytest.raises(CollapseError, match=r"model\.norm\.weight"):
        hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_locked_clone_that_was_trained_collapses_to_something_else_and_is_refused(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2, noise="none"), proof="structural")
    weights = load_file(tmp_path / "grown/model.safetensors")
    weights["model.decoder.layers.0.fc2.weight"] *= -2  # copies stay equal, as they do in training
    save_file(weights, tmp_path / "grown/model.safetensors", {"format": "pt"})
    with pytest.raises(CollapseError, match=r"fc2\.weight"):
        hyperclone.collapse(tmp_path / "grown", tmp_path / "again")


@pytest.mark.parametrize("seed", range(3))
def test_an_untouched_gaussian_growth_in_bf16_collapses(seed: int, model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("neox-parallel", dtype=torch.bfloat16)
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2, noise="gaussian", seed=seed), proof="structural")
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact is False


def test_a_directory_without_a_receipt_is_refused(model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match="receipt"):
        hyperclone.collapse(model_dir("opt"), tmp_path / "again")


def test_a_receipt_of_another_model_is_refused(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("opt"), tmp_path / "a", Growth(width=2), proof="none")
    hyperclone.grow(model_dir("opt"), tmp_path / "b", Growth(width=3), proof="none")
    shutil.copy(tmp_path / "b/hyperclone.json", tmp_path / "a/hyperclone.json")
    with pytest.raises(hyperclone.HypercloneError, match="found"):
        hyperclone.collapse(tmp_path / "a", tmp_path / "again")


def test_every_tensor_of_a_mixture_is_read_once(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperclone.conversion import collapse as module

    hyperclone.grow(model_dir("llama-grouped-untied"), tmp_path / "grown", Growth(experts=8), proof="none")
    calls: Counter[str] = Counter()
    collapse_tensor = module._collapse_tensor

    def counted(tensor: TensorPlan, *rest: Any) -> torch.Tensor:
        calls[tensor.name] += 1
        return collapse_tensor(tensor, *rest)

    monkeypatch.setattr(module, "_collapse_tensor", counted)
    hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    experts = {name: count for name, count in calls.items() if ".experts." in name}
    assert len(experts) == 2 * 8 * 3
    assert set(calls.values()) == {1}  # an original is compared with its copies as it is written
