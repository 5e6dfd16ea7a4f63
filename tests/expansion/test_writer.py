"""Weights, config, index and carried files of a grown model, and what is reported while they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hyperclone import Growth
from hyperclone.expansion import writer
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.planning import planner

ModelDir = Callable[..., Path]


@pytest.mark.parametrize("base", [False, True], ids=["", "saved from the base model"])
@pytest.mark.parametrize("shard_size", ["30KB", "5GB"])
def test_what_is_planned_is_written_reported_and_kept_for_a_rerun(
    shard_size: str, base: bool, model_dir: ModelDir, tmp_path: Path
) -> None:
    directory = tmp_path / "source"
    directory.mkdir()
    for file in ("config.json", "tokenizer.json"):
        (directory / file).write_bytes((model_dir("llama-grouped-tied") / file).read_bytes())
    tensors = load_file(model_dir("llama-grouped-tied") / "model.safetensors")
    stored = {name.removeprefix("model.") if base else name: tensor for name, tensor in tensors.items()}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    source = Checkpoint.open(directory)
    plan = planner.make_plan(source, Growth(width=2, noise="none", order="tiled"), shard_size=shard_size)
    calls: list[tuple[str, int, int]] = []

    def write(*, publish: bool) -> None:
        target = Destination(tmp_path / "out", source=directory, fingerprint="one", nbytes=0, overwrite=False)
        with closing(target):
            writer.write(plan, source, target, threads=1, progress=lambda *call: calls.append(call))
            if publish:
                target.publish()

    write(publish=False)  # as if it had been stopped then
    assert {stage for stage, _, _ in calls} == {"grow"}
    assert (calls[0][1], calls[-1][1:]) == (0, (plan.nbytes, plan.nbytes))
    write(publish=True)
    total = sum(tensor.nbytes for tensor in plan.tensors)
    out = tmp_path / "out"
    shards = {shard.file: shard for shard in plan.shards}
    names = {name: file for file in shards for name in load_file(out / file)}
    expected = {name.removeprefix("model.") if base else name for name in tensors}
    assert names.keys() == expected
    index = out / "model.safetensors.index.json"
    assert index.exists() == (len(shards) > 1) == (shard_size == "30KB")
    if index.exists():
        assert json.loads(index.read_text()) == {"metadata": {"total_size": total}, "weight_map": names}
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    assert config == plan.config
    assert (out / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    grown = {name: tensor for file in shards for name, tensor in load_file(out / file).items()}
    norm = "norm.weight" if base else "model.norm.weight"
    assert (grown[norm][:32] + grown[norm][32:]).equal(tensors["model.norm.weight"])
