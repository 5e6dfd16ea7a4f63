"""The behavioral proof of models that do not fit in memory: the same figures, and the same failures."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.cli.display import plan_and_proof
from hyperclone.hf.streamed_model import StreamedModel
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning.plan import Plan
from hyperclone.proof import behavioral
from hyperclone.proof.behavioral import Behavior, prove_behavior

ModelDir = Callable[..., Path]


def both_ways(source: Path, grown: Path, plan: Plan) -> tuple[Behavior, Behavior]:
    """The proof in memory and layer by layer, but for the word that says which."""
    checkpoint = Checkpoint.open(source)
    in_memory, streamed = (prove_behavior(checkpoint, grown, plan, layer_by_layer=way) for way in (False, True))
    assert (in_memory.layer_by_layer, streamed.layer_by_layer) == (False, True)
    return in_memory, replace(streamed, layer_by_layer=False)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "dtype", "growth"),
    [
        ("llama-grouped-tied", torch.bfloat16, Growth(width=2)),
        ("mixtral", torch.float32, Growth(width=2)),
        ("neox-parallel", torch.float16, Growth(width=2, noise="gaussian")),
        ("opt", torch.float32, Growth(width=2, dtype="bf16")),
        ("gpt2-tied", torch.float32, Growth(width=3)),
        ("olmo2", torch.float32, Growth(width=2)),
        ("granitemoehybrid", torch.float32, Growth(layers="2x")),
        ("falcon_h1", torch.float32, Growth(width=2, layers="2x", allow_rounding=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_both_ways_give_the_same_figures(
    name: str, dtype: torch.dtype, growth: Growth, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name, dtype=dtype)
    plan = hyperclone.grow(source, tmp_path / "grown", growth, proof="none").plan
    in_memory, streamed = both_ways(source, tmp_path / "grown", plan)
    assert streamed == in_memory
    assert streamed.measured
    assert not streamed.failures
    assert streamed.source_text


@pytest.mark.slow
def test_both_ways_find_the_same_failures(model_dir: ModelDir, tmp_path: Path) -> None:
    source, grown = model_dir("llama-grouped-untied"), tmp_path / "grown"
    plan = hyperclone.grow(source, grown, Growth(width=2), proof="none").plan
    tensors = load_file(grown / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 2
    save_file(tensors, grown / "model.safetensors", {"format": "pt"})
    in_memory, streamed = both_ways(source, grown, plan)
    assert streamed == in_memory
    assert any("real text" in failure for failure in streamed.failures)


def test_a_tensor_that_transformers_would_not_save_fails_both_ways(model_dir: ModelDir, tmp_path: Path) -> None:
    source, grown = model_dir("llama-grouped-untied"), tmp_path / "grown"
    plan = hyperclone.grow(source, grown, Growth(width=2), proof="none").plan
    tensors = load_file(grown / "model.safetensors")
    save_file({**tensors, "model.extra.weight": torch.ones(2)}, grown / "model.safetensors", {"format": "pt"})
    in_memory, streamed = both_ways(source, grown, plan)
    assert streamed == in_memory
    assert "model.extra.weight: gained or lost when transformers saves the model again" in streamed.failures


@pytest.mark.slow
def test_bytes_that_change_when_transformers_saves_the_model_fail(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, grown = model_dir("opt"), tmp_path / "grown"
    plan = hyperclone.grow(source, grown, Growth(width=2), proof="none").plan
    intact = StreamedModel.tensors_to_save
    monkeypatch.setattr(StreamedModel, "tensors_to_save", lambda self: ((name, t + 1) for name, t in intact(self)))
    behavior = prove_behavior(Checkpoint.open(source), grown, plan, layer_by_layer=True)
    lines = [line for line in behavior.failures if "changed when" in line]
    assert sorted(lines) == sorted(
        f"{t.name}: changed when transformers loads and saves the model" for t in plan.tensors
    )


@pytest.mark.slow
def test_memory_decides_and_what_was_done_is_said(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory where there is enough; else layer by layer; and neither where not even a layer fits."""
    source, grown = model_dir("llama-grouped-tied"), tmp_path / "grown"
    plan = hyperclone.grow(source, grown, Growth(width=2), proof="none").plan
    fixed = 1e9 + 900 * 300 * 20
    layers = [StreamedModel(Checkpoint.open(path), torch.float32).at_once for path in (source, grown)]
    least = fixed + max(12 * layers[0], 6 * layers[1])
    whole = fixed + 4.5 * plan.parameters + 9 * plan.source_parameters
    assert least < whole
    for available, expected in ((whole, (True, False)), (whole - 1, (True, True)), (least - 1, (False, False))):
        monkeypatch.setattr(behavioral, "available_memory", lambda available=available: available)
        proof = hyperclone.verify(source, grown)
        assert proof.passed
        assert proof.behavior is not None
        assert (bool(proof.behavior.measured), proof.behavior.layer_by_layer) == expected
        assert proof.summary()["behavior"]["layer_by_layer"] == expected[1]
        console = Console(record=True, width=150, file=io.StringIO())
        console.print(plan_and_proof.proof_table(proof))
        text = console.export_text()
        assert ("layer by layer as they ran" in text) == expected[1]
        assert ("GB layer by layer" in text) != expected[0]


def test_a_model_that_cannot_be_read_by_parts_is_skipped_with_the_reason(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperclone.hf import unread_model

    monkeypatch.setattr(behavioral, "available_memory", lambda: 1e6)
    monkeypatch.setattr(unread_model, "to_disk", lambda model, name, value: {f"other.{name}": value})
    proof = hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2)).proof
    assert proof is not None
    assert proof.behavior is not None
    [reason] = proof.behavior.skipped
    assert "they cannot run layer by layer: no tensor has the name that transformers gives it" in reason


def test_a_truncated_file_is_an_error_of_ours(model_dir: ModelDir, tmp_path: Path) -> None:
    source, grown = model_dir("opt"), tmp_path / "grown"
    plan = hyperclone.grow(source, grown, Growth(width=2), proof="none").plan
    checkpoint = Checkpoint.open(shutil.copytree(source, tmp_path / "source"))
    weights = tmp_path / "source/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(hyperclone.HypercloneError, match="changed or replaced"):
        prove_behavior(checkpoint, grown, plan, layer_by_layer=True)


@pytest.mark.parametrize("kind", ["RLIMIT_RSS", "RLIMIT_DATA"])
def test_limits_of_the_process_count(kind: str) -> None:
    script = (
        "import json, resource; from hyperclone.hf.memory import available_memory as a; before = a();"
        f"resource.setrlimit(resource.{kind}, (3 << 30, 3 << 30)); print(json.dumps([before, a()]))"
    )
    before, after = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert min(before, 2 << 30) < after < 3 << 30 or before < 2 << 30
