"""`plan --tokens`: what a training takes, against the model that is planned and the run that train would make."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.errors import OptionError
from hyperclone.hf import models
from hyperclone.training import flops
from hyperclone.training.estimate import estimate, flops_per_token
from tests.helpers.command import call
from tests.helpers.edits import edit_json

ModelDir = Callable[..., Path]


@pytest.mark.parametrize(
    "name", ["llama-grouped-tied", "llama-grouped-untied", "gpt2-tied", "neox-parallel", "mixtral"]
)
def test_operations_of_a_token_are_those_that_the_grown_model_has(
    name: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name)
    plan = hyperclone.plan(source, Growth(width=2))
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none")
    model, _ = models.load_model(tmp_path / "grown", torch.float32)
    assert flops_per_token(plan, 16) == pytest.approx(flops.per_token(model, 16), rel=1e-12)


def test_steps_warm_up_memory_and_disk_follow_from_the_defaults_of_train(model_dir: ModelDir, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir("llama-grouped-tied"), directory)
    edit_json(directory / "config.json", max_position_embeddings=512)
    plan = hyperclone.plan(directory, Growth(width=2))
    found = estimate(plan, "1B")
    assert (found.seq_len, found.batch_tokens) == (512, 64 * 512)
    assert found.steps == 10**9 // found.batch_tokens
    assert found.warmup_steps == math.ceil(0.01 * found.steps)
    assert found.flops == pytest.approx(found.flops_per_token * found.steps * found.batch_tokens)
    assert found.gpu_hours == pytest.approx(found.flops / (0.4 * 989e12) / 3600)
    assert found.memory == 16 * plan.parameters
    assert found.disk == 24 * plan.parameters + plan.nbytes
    edit_json(directory / "config.json", max_position_embeddings=4096)
    long = hyperclone.plan(directory, Growth(width=2))
    assert estimate(long, 10**9).seq_len == 1024
    assert estimate(long, 10).steps == 1
    with pytest.raises(OptionError, match="not a number of tokens"):
        estimate(long, "many")


def test_the_command_prints_it_and_puts_it_into_json(model_dir: ModelDir) -> None:
    source = model_dir("llama-grouped-tied")
    shown = call("plan", source, "--width", 2, "--tokens", "2B")
    text = " ".join(shown.stdout.split())
    assert "steps of" in text
    assert "of one H100 at 40% of its peak" in text
    content = json.loads(call("plan", source, "--width", 2, "--tokens", "2B", "--json").stdout)
    assert content["training"]["steps"] == estimate(hyperclone.plan(source, Growth(width=2)), "2B").steps
    assert content["training"]["gpu"] == "H100 at 40% of 989 TFLOP/s"
    assert "training" not in json.loads(call("plan", source, "--width", 2, "--json").stdout)
