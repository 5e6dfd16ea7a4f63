"""Trained models, not random ones: SmolLM2-135M and Gemma 3 270M, grown from disk and compared in transformers.

`make real` fetches both (demo/get_model.py) and runs this. Elsewhere it is skipped, unless HYPERCLONE_CACHE names a
directory that holds them. Logits are compared in fp32: trained weights and real text, as a user would see them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import hyperclone
from hyperclone import Growth
from hyperclone.errors import GrowthError
from hyperclone.hf.models import quiet

pytestmark = pytest.mark.slow

TEXT = (
    "The Constitution of the United States was written in Philadelphia in 1787. It begins with the words 'We the "
    "People', and it divides the government into three branches."
)
PROMPT = "The Congress of the United States"


def cached(name: str) -> Path:
    cache = os.environ.get("HYPERCLONE_CACHE")
    if not cache or not (Path(cache) / name / "config.json").is_file():
        pytest.skip(f"{name} is not in HYPERCLONE_CACHE; `make real` fetches it and runs this")
    return Path(cache) / name


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return cached("SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def gemma3() -> Path:
    return cached("gemma-3-270m")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory for gigabytes, which are not kept."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@cache
@torch.inference_mode()
def read(path: Path) -> tuple[torch.Tensor, str]:
    """Logits (tokens, vocab) of TEXT, and PROMPT continued greedily by 16 tokens: fp32, transformers only."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        assert not any(info.values()), info
        tokenizer = AutoTokenizer.from_pretrained(path)
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
        tokens = model.generate(**tokenizer(PROMPT, return_tensors="pt"), do_sample=False, max_new_tokens=16)
    return logits, tokenizer.decode(tokens[0], skip_special_tokens=True)


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dictionary)
            yield name, file.get_tensor(name)


def compare(source: Path, grown: Path) -> float:
    """Relative error of the grown model's logits; both must write the same text."""
    (before, said), (after, says) = read(source), read(grown)
    assert says == said
    assert len(said) > len(PROMPT) + 20
    error = float((after - before).norm() / before.norm())
    print(f"\n{source.name} -> {grown.name}: fp32 logits are off by {error:.1e} of their size. Both write: {said!r}")
    return error


def check_undone(source: Path, grown: Path, again: Path) -> None:
    """Collapsing gives every tensor of the source back, bit for bit."""
    assert hyperclone.collapse(grown, again).exact
    old, new = dict(tensors(source)), dict(tensors(again))
    assert old.keys() == new.keys()
    assert all(new[name].dtype == old[name].dtype and new[name].equal(old[name]) for name in old)


def test_smollm2_in_bf16_is_proved_and_comes_back_bit_for_bit(smollm2: Path, scratch: Path) -> None:
    done = hyperclone.grow(smollm2, scratch / "2x", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert not done.proof.behavior.skipped
    assert done.proof.behavior.source_text == done.proof.behavior.grown_text
    assert not done.plan.rounds
    assert {tensor.dtype for tensor in done.plan.tensors} == {"BF16"}
    assert compare(smollm2, scratch / "2x") <= 1e-5
    check_undone(smollm2, scratch / "2x", scratch / "again")


def test_gemma_3_in_bf16_is_refused_since_its_embedding_would_be_rounded(gemma3: Path) -> None:
    with pytest.raises(GrowthError, match="--allow-rounding"):
        hyperclone.plan(gemma3, Growth(width=2))


def test_gemma_3_in_fp32_keeps_its_function(gemma3: Path, scratch: Path) -> None:
    done = hyperclone.grow(gemma3, scratch / "2x", Growth(width=2, dtype="fp32"), proof="structural")
    assert done.proof is not None
    assert done.proof.passed
    assert compare(gemma3, scratch / "2x") <= 1e-5


def test_more_heads_of_gemma_3_are_exact_in_bf16_and_come_back_bit_for_bit(gemma3: Path, scratch: Path) -> None:
    done = hyperclone.grow(gemma3, scratch / "heads", Growth(heads="2x"), proof="structural")
    assert done.proof is not None
    assert done.proof.passed
    assert not done.plan.rounds
    assert compare(gemma3, scratch / "heads") <= 1e-5
    check_undone(gemma3, scratch / "heads", scratch / "again")
