"""Experts in parameters of three dimensions: every optimizer trains the matrix of each expert as it trains a matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.errors import OptionError
from hyperclone.optim import muon
from hyperclone.optim.rotated_adamw import rotated_adamw, rotations
from hyperclone.planning.plan import Plan
from tests.helpers.training_steps import DECAY, LR, MAKE, batches, grow, in_float64, plain, source, train

__all__ = ["in_float64"]
# One by one on disk and fused in memory; stored in one tensor, as Linears and as Conv1Ds.
NAMES = ["mixtral", "qwen3-moe", "granitemoe", "gpt_oss", "llama4_text"]
STEPS = 12


def with_muon(model: Any, made: Plan | None, adjust: str) -> list[torch.optim.Optimizer]:
    """Muon for all matrices and AdamW for the rest: by the scaling rule for a clone, by hand for the source."""
    settings = {"lr": LR["muon"], "weight_decay": DECAY}
    if made is not None:
        options: dict[str, Any] = {"adjust_lr_fn": adjust, "receipt": made, **settings}
        hidden = hyperclone.param_groups(model, optimizer="muon", **options)
        rest = hyperclone.param_groups(model, lr=LR["adamw"], part="rest", receipt=made)
    else:
        io = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        biases = {id(p) for name, p in model.named_parameters() if name.endswith(("bias", "sinks"))}
        chosen = [p for p in model.parameters() if p.dim() > 1 and id(p) not in io | biases]
        others = set(map(id, model.parameters())) - set(map(id, chosen))
        hidden = [{"params": chosen, **settings}]
        rest = [{"params": [p for p in model.parameters() if id(p) in others], "lr": LR["adamw"], "weight_decay": 0}]
    return [hyperclone.Muon(hidden, adjust_lr_fn=adjust), MAKE["adamw"](rest)]


@pytest.mark.quick(2)
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("name", NAMES)
def test_with_muon_on_its_experts_a_clone_follows_its_source(
    name: str, adjust: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "orthogonalized", partial(muon.orthogonalized, dtype=torch.float64))
    small = source(name)
    wide, made = grow(small, Growth(hidden="2x", heads="2x", ffn="4x", noise="none"))
    experts = [n for n, p in wide.named_parameters() if p.dim() == 3]
    groups = hyperclone.param_groups(wide, lr=1.0, optimizer="muon", receipt=made)
    assert {n for n in experts if not n.endswith("bias")} <= {n for group in groups for n in group["param_names"]}
    assert experts
    expected = train(small, with_muon(small, None, adjust), batches(STEPS))
    assert train(wide, with_muon(wide, made, adjust), batches(STEPS)) == pytest.approx(expected, abs=1e-10)
    assert abs(expected[-1] - expected[0]) > 1e-3


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", NAMES)
def test_in_the_coordinates_of_copies_a_clone_follows_its_source(name: str) -> None:
    small = source(name)
    wide, made = grow(small, Growth(hidden="2x", heads="2x", ffn="3x", noise="none"))
    experts = [n for n, p in wide.named_parameters() if p.dim() == 3]
    assert experts
    assert set(experts) <= rotations(wide, receipt=made).keys()
    expected = train(small, [plain(small, "adamw")], batches(STEPS))
    # Only rounding makes copies differ here, and Adam would take it for a gradient.
    optimizer = rotated_adamw(
        wide, lr=LR["adamw"], weight_decay=DECAY, betas=(0.9, 0.95), receipt=made, difference_lr=0.0
    )
    assert train(wide, [optimizer], batches(STEPS)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_every_expert_steps_as_with_a_muon_of_its_own_from_torch(
    shape: tuple[int, int], adjust: str | None, nesterov: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(3, *shape, generator=draw)
    start[1] *= 1000  # each has a norm of its own
    stacked, single = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[0].clone())
    alone = [torch.nn.Parameter(expert.clone()) for expert in start]
    options: dict[str, Any] = {"lr": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    ours: torch.optim.Optimizer = hyperclone.Muon([stacked, single], **options)
    theirs: torch.optim.Optimizer = torch.optim.Muon(alone, **options)
    assert {k: v for k, v in ours.defaults.items() if k in theirs.defaults} == theirs.defaults
    for _ in range(5):
        stacked.grad = torch.randn(3, *shape, generator=draw) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
        single.grad = stacked.grad[0].clone()
        for expert, gradient in zip(alone, stacked.grad, strict=True):
            expert.grad = gradient.clone()
        ours.step()
        theirs.step()
    # Both iterate in bf16, in which a step of 0.1 times at most 2 is off by a hundredth.
    assert torch.allclose(stacked - start, torch.stack(list(alone)) - start, rtol=0.02, atol=0.02)
    assert torch.allclose(single, alone[0], rtol=0.02, atol=0.02)
    assert ours.state[stacked].keys() == theirs.state[alone[0]].keys()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: hyperclone.Muon([torch.nn.Parameter(torch.zeros(3))]), "2 or 3 dimensions"),
        (lambda: hyperclone.Muon([torch.nn.Parameter(torch.zeros(3, 3))], adjust_lr_fn="other"), "match_rms_adamw"),
    ],
)
def test_what_it_cannot_train_is_refused(make: Callable[[], Any], found: str) -> None:
    with pytest.raises(OptionError, match=found):
        make()


def test_the_receipt_says_the_same_as_the_plan(tmp_path: Path, model_dir: Callable[..., Path]) -> None:
    from hyperclone.hf.models import load_model

    done = hyperclone.grow(model_dir("qwen3-moe"), tmp_path / "grown", Growth(width=2), proof="none")
    model, _ = load_model(done.path, torch.float32)
    by_receipt, by_plan = (
        hyperclone.param_groups(model, lr=1.0, optimizer="muon", receipt=receipt) for receipt in (None, done.plan)
    )
    assert [(g["name"], g["param_names"]) for g in by_receipt] == [(g["name"], g["param_names"]) for g in by_plan]
