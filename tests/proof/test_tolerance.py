"""The tolerance by its derivation: 4 a sqrt(n), with a = sqrt(n B (1 + q)), and sqrt(k + 2) for several experts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.hf import logits
from hyperclone.planning import planner
from hyperclone.proof import tolerance
from tests.helpers.headers import headers

FACTORS: list[tuple[dict[str, Any], float]] = [
    ({"width": 3, "noise": "none"}, 4 * 3**0.5),
    ({"width": 2}, 4 * 1.1**0.5 * 2**0.5),  # 10 dB: q = 1/10
    ({"width": 2, "snr_db": 20.0, "noise": "gaussian"}, 4 * 1.01**0.5 * 2**0.5),
    ({"width": 3, "expansion": "diagonal", "noise": "none"}, 4 * 3**0.5 * 3**0.5),
    ({"width": 3, "expansion": "diagonal"}, 4 * (3 * 1.1) ** 0.5 * 3**0.5),
    ({"width": 2, "ffn": "4x", "noise": "none"}, 4 * 4**0.5),  # n of what grows most
    ({"experts": 4, "noise": "none"}, 4 * 4**0.5),  # k = 2
    ({"experts": 4, "top_k": 3, "width": 2, "noise": "none"}, 4 * 2**0.5 * 5**0.5),
    ({"experts": 4, "top_k": 1, "width": 2, "noise": "none"}, 4 * 2**0.5),
]


@pytest.mark.parametrize(("growth", "expected"), FACTORS, ids=[str(growth) for growth, _ in FACTORS])
def test_the_factor_is_the_derived_one(growth: dict[str, Any], expected: float) -> None:
    plan = planner.make_plan(headers("llama-multihead"), Growth(**growth))
    assert tolerance.factor(plan) == pytest.approx(expected, rel=1e-12)
    assert tolerance.largest_difference(plan, 1e-6) == pytest.approx(expected * 1e-6, rel=1e-12)
    assert tolerance.largest_difference(plan, 0.5 / expected * 0.999) < 0.5
    assert tolerance.largest_difference(plan, 1.0) == 0.5  # whatever rounding may explain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_source_error_is_at_least_one_unit_in_the_last_place(dtype: torch.dtype) -> None:
    unit = torch.finfo(dtype).eps
    assert tolerance.source_error(0.0, dtype) == unit
    assert tolerance.source_error(unit * 0.9, dtype) == unit
    assert tolerance.source_error(unit * 1.5, dtype) == unit * 1.5


def test_logits_that_are_all_zero_are_equal_to_themselves_and_to_no_others() -> None:
    zero = torch.zeros(3, 5)
    assert logits.distance(zero, zero).relative == 0.0
    assert logits.distance(zero + 1e-3, zero).relative == math.inf


def test_a_source_with_a_head_of_zeros_is_proved(model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(model_dir("llama-grouped-untied"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.zeros_like(tensors["lm_head.weight"])}, source / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    proof = hyperclone.grow(source, tmp_path / "grown", Growth(width=2)).proof
    assert proof is not None
    assert proof.passed
