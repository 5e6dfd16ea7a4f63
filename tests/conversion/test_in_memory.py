"""grow_model gives in memory what grow gives on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hyperclone
from hyperclone import Growth, HypercloneError
from tests.helpers.models import FULLY, build

ModelDir = Callable[..., Path]


@pytest.mark.parametrize("name", FULLY)
def test_in_memory_and_on_disk_give_the_same_bytes(name: str, model_dir: Callable[..., Path], tmp_path: Path) -> None:
    growth = Growth(width=2, seed=5)
    grown = hyperclone.grow_model(build(name), growth)
    grown.save_pretrained(tmp_path / "memory")
    hyperclone.grow(model_dir(name), tmp_path / "disk", growth, proof="none")
    one, two = (load_file(tmp_path / side / "model.safetensors") for side in ("memory", "disk"))
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)


def test_logits_are_equal_and_class_mode_and_source_are_kept() -> None:
    model = build("llama-grouped-tied").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grown = hyperclone.grow_model(model, Growth(width=2))
    assert type(grown) is type(model)
    assert grown.training
    assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight
    assert all(model.state_dict()[k].equal(v) for k, v in before.items())
    ids = torch.randint(300, (2, 16))
    with torch.inference_mode():
        a, b = model.eval()(ids).logits, grown.eval()(ids).logits
    assert (a - b).norm() / a.norm() < 1e-5


def test_a_model_without_weights_or_of_mixed_types_is_refused() -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(build("opt").config)
    with pytest.raises(hyperclone.HypercloneError, match="meta"):
        hyperclone.grow_model(empty, Growth(width=2))
    mixed = build("opt", dtype=torch.bfloat16)
    mixed.model.decoder.layers[0].fc1.float()
    with pytest.raises(hyperclone.HypercloneError, match="mixes types"):
        hyperclone.grow_model(mixed, Growth(width=2))


def test_what_was_grown_is_known_wherever_the_model_is_saved(model_dir: ModelDir, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = model_dir("llama-grouped-tied")
    wide = hyperclone.grow_model(AutoModelForCausalLM.from_pretrained(source), Growth(width=2))
    wide.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2))
    by_directory = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    expected = hyperclone.param_groups(by_directory, lr=1e-3)
    for model in (wide, loaded):
        groups = hyperclone.param_groups(model, lr=1e-3)
        assert [(g["name"], g["lr"], g["param_names"]) for g in groups] == [
            (g["name"], g["lr"], g["param_names"]) for g in expected
        ]
        hyperclone.rotated_adamw(model, lr=1e-3, difference_lr=2e-3)
    assert hyperclone.verify(source, tmp_path / "saved").passed
    hyperclone.collapse(tmp_path / "saved", tmp_path / "again")
    one, two = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "again"))
    assert all(one[key].equal(two[key]) for key in one | two)
    assert "hyperclone" not in json.loads((tmp_path / "again/config.json").read_text())
    wider = hyperclone.grow(tmp_path / "saved", tmp_path / "wider", Growth(width=2)).path
    said = json.loads((wider / "config.json").read_text())["hyperclone"]
    assert said["source_config"]["hidden_size"] == wide.config.hidden_size
    assert "hyperclone" not in said["source_config"]


def test_a_corrupt_record_in_a_config_is_refused(model_dir: ModelDir, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir("llama-grouped-tied"))
    for value in (3, {}, {"format": 2}, {"format": 1, "growth": {"width": "x"}, "source_config": {}}):
        model.config.hyperclone = value
        with pytest.raises(HypercloneError):
            hyperclone.param_groups(model, lr=1e-3)
