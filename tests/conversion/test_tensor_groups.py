"""`hyperclone groups`: the scaling rule for every tensor on disk is that of `param_groups` in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone.conversion import receipt
from hyperclone.conversion.tensor_groups import TensorGroup, decays, tensor_groups
from hyperclone.errors import CheckpointError, GrowthError, HypercloneError, OptionError
from hyperclone.hf import parameter_names
from hyperclone.hf.trainer import decayed_names
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from tests.helpers import models
from tests.helpers.command import call
from tests.helpers.headers import headers

REFERENCE = Path(__file__).parents[2] / "docs" / "training-reference.md"
RATES: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.1}
# Norms that Trainer takes for weights by their names, and a bias that has another name in memory.
MISSED = re.compile(r"post_norm[12]\.weight|_residual|norm_f\.weight|attention_sink_bias")


def grown_on_meta(name: str, directory: Path, **growth: Any) -> Any:
    """A grown model without weights, and its directory with a receipt."""
    from transformers import AutoConfig, AutoModelForCausalLM

    plan = planner.make_plan(headers(name), Growth(**growth))
    (directory / receipt.FILE).write_text(json.dumps(receipt.make_receipt(plan, "source", None, files={})))
    config = AutoConfig.for_model(**plan.config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def on_disk(model: Any, groups: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """(name, lr, decay, eps) of the group of every tensor on disk."""
    return {
        stored: (group["name"], group["lr"], group["weight_decay"], group.get("eps"))
        for group in groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for stored in parameter_names.disk_shapes(model, name, parameter.shape)
    }


def told(groups: dict[str, TensorGroup]) -> dict[str, tuple[Any, ...]]:
    return {name: (group.group, group.lr, group.weight_decay, group.eps) for name, group in groups.items()}


@pytest.mark.parametrize("name", sorted(models.REPRESENTATIVE | {"llama-grouped-untied"}))
def test_every_tensor_has_the_settings_that_its_parameter_has_in_memory(name: str, tmp_path: Path) -> None:
    model = grown_on_meta(name, tmp_path, width=2)
    for optimizer in ("adamw", "sgd"):
        for asked in ({}, {"decay_norms_and_biases": True}, {"weight_decay": 0.0}, {"eps": 1e-6}):
            options = {**RATES, **asked, "optimizer": optimizer}
            expected = on_disk(model, hyperclone.param_groups(model, receipt=tmp_path, **options))
            assert told(tensor_groups(tmp_path, **options).tensors) == expected


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_trains_the_hidden_matrices_and_adamw_the_rest(adjust: str, tmp_path: Path) -> None:
    model = grown_on_meta("llama-grouped-untied", tmp_path, hidden=2, heads=2)
    muon = hyperclone.param_groups(model, receipt=tmp_path, optimizer="muon", adjust_lr_fn=adjust, **RATES)
    rest = hyperclone.param_groups(model, receipt=tmp_path, part="rest", **{**RATES, "lr": 1e-3})
    groups = tensor_groups(tmp_path, optimizer="muon", adjust_lr_fn=adjust, adamw_lr=1e-3, **RATES).tensors
    assert told(groups) == on_disk(model, muon) | on_disk(model, rest)
    assert {name for name, group in groups.items() if group.optimizer == "muon"} == set(on_disk(model, muon))
    assert all(group.hidden == (group.optimizer == "muon") for group in groups.values())


def test_copies_and_their_order_are_those_of_the_growth(tmp_path: Path) -> None:
    grown_on_meta("llama-grouped-untied", tmp_path, hidden=3, ffn=2, heads="1x", order="interleaved")
    groups = tensor_groups(tmp_path)
    assert (groups.order, groups.source) == ("interleaved", "source")
    copies = {name: group.copies for name, group in groups.tensors.items()}
    assert copies["model.embed_tokens.weight"] == copies["lm_head.weight"] == pytest.approx(3)
    assert copies["model.layers.0.mlp.up_proj.weight"] == pytest.approx(6)
    up = groups.tensors["model.layers.0.mlp.up_proj.weight"]
    assert (up.lr, up.weight_decay, up.eps) == (None, None, None)
    assert up.lr_scale == pytest.approx(1 / 3) == pytest.approx(1 / up.weight_decay_scale)


@pytest.mark.parametrize("name", models.MODELS)
def test_what_decays_is_what_trainer_decays(name: str) -> None:
    source = headers(name)
    try:
        plan = planner.make_plan(source, Growth(layers="2x"))
    except HypercloneError:
        plan = planner.make_plan(source, Growth(width=2, dtype="fp64"))
    model = models.build(name)
    decayed = decayed_names(model)
    expected = {
        stored: parameter in decayed
        for parameter, value in parameter_names.named_parameters(model)
        for stored in parameter_names.disk_shapes(model, parameter, value.shape)
    }
    differing = [t.name for t in plan.tensors if t.name in expected and decays(t) != expected[t.name]]
    assert all(MISSED.search(tensor) for tensor in differing), differing


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"optimizer": "lion"}, "optimizer"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"lr": float("inf")}, "lr"),
        ({"lr": 1e-3, "eps": -1.0}, "eps"),
        ({"lr": 1e-3, "adamw_lr": 1e-3}, "adamw_lr"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        tensor_groups(tmp_path, **options)
    assert caught.value.details["field"] == field


def test_a_directory_that_was_not_grown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="receipt"):
        tensor_groups(tmp_path)
    (tmp_path / "grown").mkdir()
    with pytest.raises(CheckpointError, match="did you mean"):
        tensor_groups(tmp_path / "gron")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_has_a_row_for_each_kind_of_tensor(columns: str, tmp_path: Path) -> None:
    grown_on_meta("llama-grouped-tied", tmp_path, width=2)
    shown = call("groups", tmp_path, "--lr", "1e-4", "--weight-decay", "0.1", COLUMNS=columns).stdout
    assert re.search(r"^\{i\}\.mlp\.up_proj x2 +96 x 64 +4 +x 0\.5 +x 2 +x 0\.5$", shown, re.MULTILINE)
    assert re.search(r"^lr x 0\.5, decay x 2, eps x 0\.5 +14 +5e-05 +0\.2 +5e-09$", shown, re.MULTILINE)
    assert "copies interleaved" in shown


def test_the_loop_that_the_reference_shows_has_the_groups_of_param_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = REFERENCE.read_text("utf-8")
    (command, code) = re.findall(
        r"^\$ hyperclone (groups .*) > groups.json\n```\n\n```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )[0]
    models.build("llama-grouped-tied").save_pretrained(tmp_path / "source")
    hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2), proof="none")
    monkeypatch.chdir(tmp_path)
    Path("groups.json").write_text(call(*command.split()).stdout)
    names: dict[str, Any] = {}
    exec(code, names)
    expected = torch.optim.AdamW(
        hyperclone.param_groups(names["model"], lr=1e-4, weight_decay=0.1), betas=(0.9, 0.95)
    ).param_groups
    made = names["optimizer"].param_groups
    assert [[id(p) for p in group["params"]] for group in made] == [[id(p) for p in g["params"]] for g in expected]
    ours = {"params", "param_names", "lr_scale"}
    assert [{key: group[key] for key in group.keys() - ours} for group in made] == [
        {key: group[key] for key in group.keys() - ours} for group in expected
    ]
