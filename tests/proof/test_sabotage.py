"""One weight in every tensor is changed, and the structural proof names the tensor (bench/sabotage.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hyperclone
from bench import sabotage
from hyperclone import Growth
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.proof.behavioral import prove_behavior
from hyperclone.proof.structural import prove_structure

ModelDir = Callable[..., Path]


@pytest.mark.parametrize("kind", sabotage.KINDS)
@pytest.mark.parametrize(
    ("name", "dtype"), [("llama-grouped-tied", torch.bfloat16), ("opt", torch.float16), ("mixtral", torch.float32)],
    ids=str,
)  # fmt: skip
def test_one_changed_weight_in_any_tensor_is_named(
    kind: str, name: str, dtype: torch.dtype, model_dir: ModelDir, tmp_path: Path
) -> None:
    plan = hyperclone.grow(model_dir(name, dtype=dtype), tmp_path / "grown", Growth(width=2), proof="none").plan
    source, model = Checkpoint.open(model_dir(name, dtype=dtype)), Checkpoint.open(tmp_path / "grown")
    changes = [sabotage.draw(model, tensor.name, kind, seed=1) for tensor in plan.tensors]
    for change in changes:
        assert sabotage.named(source, tmp_path / "grown", plan, [change]) == {change.tensor}
    assert sabotage.named(source, tmp_path / "grown", plan, changes) == {tensor.name for tensor in plan.tensors}
    assert prove_structure(source, tmp_path / "grown", plan).passed  # every change was undone


def test_the_behavioral_proof_notices_doubled_weights_by_itself(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    plan = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none").plan
    model = Checkpoint.open(tmp_path / "grown")
    with sabotage.made([sabotage.draw(model, tensor.name, "doubled", seed=1) for tensor in plan.tensors]):
        failures = prove_behavior(Checkpoint.open(source), tmp_path / "grown", plan).failures
    assert any("fp32" in failure or "float32" in failure for failure in failures)
