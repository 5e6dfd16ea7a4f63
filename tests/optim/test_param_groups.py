"""param_groups: a clone without noise has its source's loss after every step, for every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.conversion.in_memory import InMemory
from hyperclone.errors import GrowthError
from hyperclone.planning import planner, scaling_rule
from hyperclone.planning.plan import Plan
from tests.helpers import training_steps
from tests.helpers.models import build
from tests.helpers.training_steps import (
    CORE,
    DECAY,
    FAMILIES,
    LR,
    MAKE,
    batches,
    grow,
    in_float64,
    plain,
    source,
    train,
)

ModelDir = Callable[..., Path]
STEPS = 50
__all__ = ["in_float64"]


def scaled(model: Any, made: Plan, optimizer: str, **options: Any) -> torch.optim.Optimizer:
    groups = hyperclone.param_groups(
        model, lr=LR[optimizer], weight_decay=DECAY, optimizer=optimizer, receipt=made, **options
    )
    return MAKE[optimizer](groups)


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "adamw") for name in FAMILIES), *((name, "sgd") for name in CORE)]
)
def test_a_clone_follows_its_sources_loss_for_fifty_steps(name: str, optimizer: str) -> None:
    small = source(name)
    wide, made = grow(small, Growth(width=2, noise="none", allow_rounding=True))
    expected = train(small, [plain(small, optimizer)], batches(STEPS))
    assert train(wide, [scaled(wide, made, optimizer)], batches(STEPS)) == pytest.approx(expected, abs=1e-10)
    assert abs(expected[-1] - expected[0]) > 1e-3  # it has been trained


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "growth",
    [
        Growth(width=4, noise="none"),
        Growth(hidden="2x", heads="2x", ffn="4x", noise="none"),
        Growth(ffn="3x", noise="none"),
    ],
    ids=["4x", "uneven", "ffn"],
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("name", ["mistral-window", "neox-tied"])
def test_it_does_so_whatever_whole_factors_the_widths_grow_by(
    name: str, optimizer: str, growth: Growth, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = source(name)
    wide, made = grow(small, growth)
    if optimizer == "muon":
        newton_schulz_in_float64(monkeypatch)
        before = with_muon(small, small, None)
        after = with_muon(wide, small, made)
    else:
        before, after = [plain(small, optimizer)], [scaled(wide, made, optimizer)]
    expected = train(small, before, batches(12))
    assert train(wide, after, batches(12)) == pytest.approx(expected, abs=1e-10)


def newton_schulz_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Muon iterates in bf16, which rounds; the polynomial itself, in the type that it is given."""

    def orthogonal(
        grad: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
    ) -> torch.Tensor:
        a, b, c = coefficients
        x: torch.Tensor = grad / grad.norm().clamp(min=eps)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", orthogonal)


def with_muon(
    model: Any, small: Any, made: Plan | None, adjust: str = "original", eps: float = 1e-7
) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices and AdamW for the rest: by the scaling rule for a clone, by hand for the source."""
    muon: dict[str, Any] = {"lr": LR["muon"], "weight_decay": DECAY, "eps": eps}
    if made is not None:
        hidden = hyperclone.param_groups(model, optimizer="muon", adjust_lr_fn=adjust, receipt=made, **muon)
        rest = hyperclone.param_groups(model, lr=LR["adamw"], part="rest", receipt=made)
    else:
        io = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in io]
        chosen = set(map(id, matrices))
        hidden = [{"params": matrices, **muon}]
        rest = [
            {"params": [p for p in model.parameters() if id(p) not in chosen], "lr": LR["adamw"], "weight_decay": 0}
        ]
    return [torch.optim.Muon(hidden, adjust_lr_fn=adjust), MAKE["adamw"](rest)]


@pytest.mark.slow
@pytest.mark.parametrize(("adjust", "eps", "steps"), [
    ("original", 1e-7, STEPS),
    ("match_rms_adamw", 1e-7, STEPS),
    ("original", 10.0, 12),  # larger than every norm, so that it decides
])  # fmt: skip
def test_with_muon_a_clone_follows(adjust: str, eps: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    newton_schulz_in_float64(monkeypatch)
    small = source("llama-grouped-tied")
    wide, made = grow(small, Growth(hidden="2x", heads="2x", ffn="4x", noise="none"))
    expected = train(small, with_muon(small, small, None, adjust, eps), batches(steps))
    found = train(wide, with_muon(wide, small, made, adjust, eps), batches(steps))
    assert found == pytest.approx(expected, abs=1e-10)
    assert abs(expected[-1] - expected[0]) > 1e-3


def test_muons_own_learning_rate_transfers_unchanged_where_rows_and_columns_grow_alike() -> None:
    made = planner.make_plan(InMemory(build("llama-grouped-untied")), Growth(width=2, noise="none"))
    (q,) = [t for t in made.tensors if t.name == "model.layers.0.self_attn.q_proj.weight"]
    assert scaling_rule.muon(q.scale, q.gradient, q.source_shape, q.shape, "original")["lr"] == pytest.approx(1)


def test_with_noise_the_first_losses_agree_and_the_curves_separate() -> None:
    small = source("llama-grouped-tied")
    wide, made = grow(small, Growth(width=2))
    expected = train(small, [plain(small, "adamw")], batches(STEPS))
    found = train(wide, [scaled(wide, made, "adamw")], batches(STEPS))
    assert found[0] == pytest.approx(expected[0], abs=1e-10)
    assert abs(found[-1] - expected[-1]) > 1e-4


def test_the_papers_recipe_is_one_word_away_and_leaves_the_sources_loss() -> None:
    small = source("llama-grouped-tied")
    wide, made = grow(small, Growth(width=2, noise="none"))
    expected = train(small, [plain(small, "adamw")], batches(12))
    optimizer = scaled(wide, made, "adamw", lr_rule="uniform")
    assert {(g["lr"], g["eps"], g["lr_scale"]) for g in optimizer.param_groups} == {(LR["adamw"], 1e-8, 1.0)}
    assert abs(train(wide, [optimizer], batches(12))[-1] - expected[-1]) > 1e-3


def test_schedulers_that_multiply_keep_the_scaling_rule() -> None:
    small = source("llama-grouped-tied")
    wide, made = grow(small, Growth(width=2, noise="none"))
    curves: list[list[float]] = []
    for model, optimizer in ((small, plain(small, "adamw")), (wide, scaled(wide, made, "adamw"))):
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        curves.append([])
        for batch in batches(8):
            curves[-1] += train(model, [optimizer], [batch])
            schedule.step()
    assert curves[1] == pytest.approx(curves[0], abs=1e-10)


def test_at_any_width_settings_count_copies_and_not_padding_channels() -> None:
    """At 1.5x every old channel has one copy: what reads it is not divided, so its learning rate stays."""
    made = planner.make_plan(InMemory(build("llama-grouped-untied")), Growth(hidden=48, noise="none"))
    by_name = {t.name: t for t in made.tensors}
    up, norm = by_name["model.layers.0.mlp.up_proj.weight"], by_name["model.norm.weight"]
    assert (up.scale, up.gradient) == (1, 1)
    assert (norm.scale, norm.gradient) == pytest.approx(((32 / 48) ** 0.5, (48 / 32) ** 0.5))


def test_gemmas_embedding_is_smaller_so_it_moves_less() -> None:
    made = planner.make_plan(InMemory(source("gemma")), Growth(width=2, noise="none", allow_rounding=True))
    (embedding,) = [t for t in made.tensors if t.name == "model.embed_tokens.weight"]
    assert embedding.multipliers["lr"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe-tied-biases", "neox-tied", "gpt2-tied"])
def test_every_trained_parameter_is_in_one_group_under_its_name(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(width=2), proof="none")
    model = load(tmp_path / "grown")
    groups = hyperclone.param_groups(model, lr=1e-3, weight_decay=0.1)
    named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
    expected = dict(model.named_parameters())
    assert named.keys() == expected.keys()
    assert all(named[name] is p for name, p in expected.items())
    assert len(groups) <= 8
    torch.optim.AdamW(groups)
    decayed = {id(p) for p in training_steps.in_trainers_groups(model)[0]}
    assert {id(p) for group in groups if group["weight_decay"] for p in group["params"]} == decayed
    everything = hyperclone.param_groups(model, lr=1e-3, weight_decay=0.1, decay_norms_and_biases=True)
    assert all(group["weight_decay"] > 0 for group in everything)


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.slow
def test_wrapped_models_have_the_groups_of_the_bare_one(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("neox-parallel"), tmp_path / "grown", Growth(width=2), proof="none")
    model = load(tmp_path / "grown")
    expected = [(g["name"], g["param_names"]) for g in hyperclone.param_groups(model, lr=1e-3, weight_decay=0.1)]

    class Parallel(torch.nn.Module):  # as DistributedDataParallel holds its model, without processes
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    model.gpt_neox.layers[0] = torch.compile(model.gpt_neox.layers[0])
    compiled: Any = torch.compile(model)  # torch types what it returns as a function
    both: Any = torch.compile(Parallel(compiled))
    for wrapped in (compiled, Parallel(model), both):
        groups = hyperclone.param_groups(wrapped, lr=1e-3, weight_decay=0.1)
        assert [(g["name"], g["param_names"]) for g in groups] == expected


def test_frozen_parameters_are_left_out(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), proof="none")
    model = load(tmp_path / "grown")
    model.get_input_embeddings().weight.requires_grad_(False)
    groups = hyperclone.param_groups(model, lr=1e-3)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for group in groups for name in group["param_names"]} == trained
    assert len(trained) == len(list(model.parameters())) - 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lion"}, "unknown optimizer"),
        ({"lr_rule": "half"}, "unknown lr_rule"),
        ({"part": "embeddings"}, "unknown part"),
        ({"adjust_lr_fn": "mine"}, "unknown adjust_lr_fn"),
        ({"optimizer": "muon", "part": "all"}, "hidden matrices only"),
        ({"receipt": "nowhere"}, "no receipt"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_meant_is_an_error(
    options: dict[str, Any], words: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2), proof="none")
    with pytest.raises(GrowthError, match=words):
        hyperclone.param_groups(load(tmp_path / "grown"), lr=1e-3, **options)


def test_a_model_without_a_receipt_with_anothers_or_with_more_is_refused(model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="no receipt"):
        hyperclone.param_groups(load(model_dir("opt")), lr=1e-3)
    hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2), proof="none")
    with pytest.raises(GrowthError, match="another model"):
        hyperclone.param_groups(load(model_dir("opt")), lr=1e-3, receipt=tmp_path / "grown")
    model = load(tmp_path / "grown")
    model.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(GrowthError, match=r"does not know this parameter(.|\n)*adapter"):
        hyperclone.param_groups(model, lr=1e-3)
    with pytest.raises(hyperclone.HypercloneError, match="not a transformers model"):
        hyperclone.param_groups(torch.nn.Linear(2, 2), lr=1e-3)


def test_the_receipt_holds_plain_numbers_for_every_optimizer(model_dir: ModelDir, tmp_path: Path) -> None:
    import json

    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), proof="none")
    entries = json.loads((tmp_path / "grown/hyperclone.json").read_text())["training"]["parameters"]
    q = entries["model.layers.0.self_attn.q_proj.weight"]
    assert (q["lr"], q["weight_decay"], q["eps"]) == (0.5, 2, 0.5)
    assert q["sgd"] == {"lr": 1, "weight_decay": 1}
    assert q["muon"]["original"]["lr"] == pytest.approx(1)
    assert q["muon"]["match_rms_adamw"]["lr"] == pytest.approx(0.5**0.5)
    assert "muon" not in entries["model.embed_tokens.weight"]
    assert entries["model.embed_tokens.weight"]["sgd"] == {"lr": 2, "weight_decay": 0.5}
