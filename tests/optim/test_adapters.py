"""Adapters of PEFT on grown models: what they add has a group of its own, and merged they are known as grown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.conversion import receipt
from hyperclone.hf import parameter_names
from tests.helpers.models import build

peft = pytest.importorskip("peft")


def adapted(**options: Any) -> Any:
    wide = hyperclone.grow_model(build("llama-grouped-untied"), Growth(width=2))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(wide, config)


def stepped(model: Any, optimizer: torch.optim.Optimizer) -> float:
    """The loss after three steps on the same tokens, less the one before."""
    ids = torch.arange(24)[None] % 97
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses[-1] - losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_adapter_has_the_rates_that_are_given(optimizer: str) -> None:
    (group,) = hyperclone.param_groups(adapted(), lr=1e-3, weight_decay=0.1, optimizer=optimizer)
    assert (group["name"], group["lr"], group["weight_decay"], group["lr_scale"]) == ("adapter", 1e-3, 0.1, 1.0)
    assert group.get("eps", 1e-8) == 1e-8
    assert all(".lora_" in name for name in group["param_names"])
    assert len(group["params"]) == 2 * 2 * 2  # two layers, two matrices each, A and B
    assert ("eps" in group) == (optimizer == "adamw")
    assert hyperclone.param_groups(adapted(), lr=1e-3, part="hidden") == []


def test_a_module_that_is_trained_beside_the_adapter_has_those_of_the_scaling_rule() -> None:
    model = adapted(modules_to_save=["lm_head", "norm"])
    groups = {name: group for group in hyperclone.param_groups(model, lr=1e-3) for name in group["param_names"]}
    bare = hyperclone.grow_model(build("llama-grouped-untied"), Growth(width=2))
    plain = {name: group for group in hyperclone.param_groups(bare, lr=1e-3) for name in group["param_names"]}
    for name in ("lm_head.weight", "model.norm.weight"):
        assert math.isclose(groups[name]["lr"], plain[name]["lr"])
        assert groups[name]["name"] == plain[name]["name"]


@pytest.mark.parametrize("make", [hyperclone.rotated_adamw, hyperclone.rotated_muon])
def test_optimizers_of_copies_train_it_and_merged_it_is_known_as_grown(make: Any, tmp_path: Path) -> None:
    model = adapted(modules_to_save=["lm_head"])
    assert stepped(model, make(model, lr=1e-2, difference_lr=2e-2)) < 0
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    known = receipt.read(tmp_path / "merged")
    assert known is not None
    assert known.growth.width == 2
    assert type(parameter_names.unwrap(model)).__name__ == "LlamaForCausalLM"


def test_an_adapter_that_is_put_into_the_model_itself_is_known_as_well() -> None:
    """As transformers' `add_adapter` does."""
    wide = hyperclone.grow_model(build("llama-grouped-untied"), Growth(width=2))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), wide)
    for name, parameter in wide.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    (group,) = hyperclone.param_groups(wide, lr=1e-3)
    assert group["name"] == "adapter"


def test_what_is_no_adapter_is_refused_as_before() -> None:
    model = adapted()
    model.base_model.model.extra = torch.nn.Linear(2, 2)
    groups = hyperclone.param_groups(model, lr=1e-3)
    assert "extra.weight" in groups[0]["param_names"]  # of a model with adapters, all that it adds is one group
    wide = hyperclone.grow_model(build("llama-grouped-untied"), Growth(width=2))
    wide.extra = torch.nn.Linear(2, 2)
    with pytest.raises(hyperclone.HypercloneError, match="does not know this parameter"):
        hyperclone.param_groups(wide, lr=1e-3)
