"""Weights of a sharded run: each process reads its own rows, and has what `from_pretrained` would have given it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperclone.training import metrics
from tests.helpers.training_text import documents, jsonl

pytestmark = pytest.mark.slow

ModelDir = Callable[..., Path]
ROOT = Path(__file__).parents[2]
# Tied and untied heads, in one file and in several, another type; biases and a head of another name on disk; matrices
# stored as their inputs by outputs; experts that are fused on loading, tensors that are so on disk; stored buffers.
MODELS: dict[str, dict[str, Any]] = {
    "llama-grouped-tied": {"dtype": torch.bfloat16},
    "llama-grouped-untied": {"shard": "20KB"},
    "neox-parallel": {},
    "gpt2-tied": {},
    "mixtral": {"dtype": torch.bfloat16},
    "gpt_oss": {},
    "deepseek_v3": {},
}
FUSED = {"mixtral", "deepseek_v3"}


@pytest.fixture(scope="module")
def run(model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[list[dict[str, Any]]]]:
    """run(requests) -> what each of two processes has of each training; a request changes the usual one."""
    work = tmp_path_factory.mktemp("runs")
    jsonl(work / "text.jsonl", documents(30))

    def get(requests: list[dict[str, Any]], *, processes: int = 2) -> list[list[dict[str, Any]]]:
        usual = {
            "data": [str(work / "text.jsonl")], "cache": str(work / "cache"), "seq_len": 16, "batch_tokens": 64,
            "micro_batch": 1, "tokens": 64, "lr": 1e-3, "held_out": 0.1, "log_every": 1, "sharding": "full",
        }  # fmt: skip
        asked = [{**usual, **request, "output": str(work / request["output"])} for request in requests]
        file = work / "requests.json"
        file.write_text(json.dumps(asked))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        result = subprocess.run(
            [sys.executable, *launcher, "-m", "tests.helpers.shards_in_processes", str(file)],
            capture_output=True, text=True, timeout=600, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        found = [json.loads(file.with_suffix(f".{rank}.json").read_text()) for rank in range(processes)]
        return [list(of_all) for of_all in zip(*found, strict=True)]

    return get


def test_weights_are_those_of_from_pretrained_and_each_process_reads_its_own_rows(
    run: Callable[..., list[list[dict[str, Any]]]], model_dir: ModelDir
) -> None:
    cases = [(name, sharding) for name in MODELS for sharding in ("full", "gradients")]
    found = run([
        {"model": str(model_dir(name, **MODELS[name])), "sharding": sharding, "output": f"{name}-{sharding}",
         "attention": "eager" if name == "gpt_oss" else "sdpa",
         "gradient_checkpointing": name == "llama-grouped-untied"}
        for name, sharding in cases
    ])  # fmt: skip
    for (name, sharding), processes in zip(cases, found, strict=True):
        for had in processes:
            assert "error" not in had, (name, sharding, had)
            assert had["by_shards"], name
            assert had["differing"] == [], (name, sharding)
            assert had["head_is_embedding"] == name.endswith("-tied"), name
            if name not in FUSED:
                assert had["read"] == had["mine"], (name, sharding)


def test_a_resumed_run_has_the_weights_of_its_checkpoint_and_reads_no_others(
    run: Callable[..., list[list[dict[str, Any]]]], model_dir: ModelDir
) -> None:
    asked = {"model": str(model_dir("llama-grouped-tied")), "output": "resumed", "tokens": 128, "save_every": 1}
    first, again = run([asked, {**asked, "resume": True, "sharding": "gradients"}])
    for had in (*first, *again):
        assert had["by_shards"]
        assert had["differing"] == []
    assert all(had["read"] == had["mine"] for had in first)
    assert all(had["read"] == 0 for had in again)


def test_documents_are_kept_apart_or_the_run_does_not_begin(
    run: Callable[..., list[list[dict[str, Any]]]], model_dir: ModelDir
) -> None:
    asked = {"documents": "isolated", "output": "isolated"}
    # OPT takes no positions, so its documents cannot be kept apart; what takes its place needs no --resume.
    apart, refused, instead = run([
        {**asked, "model": str(model_dir("llama-grouped-tied"))},
        {**asked, "model": str(model_dir("opt")), "output": "refused"},
        {"model": str(model_dir("opt")), "output": "refused"},
    ])  # fmt: skip
    for had in (*apart, *instead):
        assert "error" not in had, had
        assert had["differing"] == []
    for had in refused:
        assert "attention does not stay inside the documents" in had["error"]


def test_random_weights_are_those_of_one_process(
    run: Callable[..., list[list[dict[str, Any]]]], model_dir: ModelDir, tmp_path: Path
) -> None:
    asked = {"model": str(model_dir("llama-grouped-untied")), "from_scratch": True, "tokens": 256}
    [sharded] = run([{**asked, "output": str(tmp_path / "two")}])
    run([{**asked, "output": str(tmp_path / "one")}], processes=1)
    assert not any(had["by_shards"] for had in sharded)
    curves = [[line["loss"] for line in metrics.read(tmp_path / name) if "loss" in line] for name in ("two", "one")]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
