"""grow_model gives in memory what grow gives on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hyperclone
from hyperclone import Growth
from tests.helpers.models import MODELS, build


@pytest.mark.parametrize("name", MODELS)
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
