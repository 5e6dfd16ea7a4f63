"""What param groups and rotated AdamW refuse, word for word, and every group with its name and settings."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.conversion import receipt as receipts
from hyperclone.errors import GrowthError
from hyperclone.expansion import copy_map
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.optim import param_groups as groups_module
from hyperclone.optim import rotated_adamw as rotated_module
from hyperclone.optim.rotated_adamw import RotatedAdamW, rotated_adamw
from hyperclone.optim.rotation import Rotation
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan
from tests.helpers.headers import headers
from tests.helpers.messages import Refusal, check_refusal
from tests.helpers.models import build

WIDER = Growth(width=2, noise="none")
WIDE = copy_map.axis(4, 8)


@functools.cache
def grown(name: str, growth: Growth = WIDER) -> tuple[Any, Plan]:
    """A model with a plan's config, whose weights do not matter, and the plan."""
    from transformers import AutoConfig, AutoModelForCausalLM

    plan = planner.make_plan(headers(name), growth)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**plan.config)), plan


def groups(name: str = "llama-grouped-tied", **options: Any) -> list[dict[str, Any]]:
    """Param groups of a model that is twice as wide."""
    model, plan = grown(name)
    return hyperclone.param_groups(model, **{"lr": 1e-3, "receipt": plan, **options})


def with_adapter() -> None:
    """Param groups of a model to which a layer has been added."""
    model, plan = grown("opt")
    model.adapter = torch.nn.Linear(2, 2)
    try:
        hyperclone.param_groups(model, lr=1e-3, receipt=plan)
    finally:
        del model.adapter


def with_another_expert() -> None:
    """Param groups where one of the experts that are one parameter in memory has another scale."""
    model, plan = grown("mixtral")
    entries = {name: dict(entry) for name, entry in receipts.parameter_settings(plan).items()}
    entries["model.layers.0.block_sparse_moe.experts.2.w2.weight"]["s"] *= 1 + 1e-11
    name = "model.layers.0.mlp.experts.down_proj"
    groups_module._entry(model, name, model.get_parameter(name), entries)


def rotated(**options: Any) -> RotatedAdamW:
    """Rotated AdamW of a model that is twice as wide."""
    model, plan = grown("llama-grouped-tied")
    return rotated_adamw(model, **{"lr": 1e-3, "receipt": plan, **options})


def another_receipt(directory: Path) -> None:
    """Param groups by the receipt of another model."""
    build("llama-multihead").save_pretrained(directory / "source")
    hyperclone.grow(directory / "source", directory / "grown", WIDER, proof="none")
    groups(receipt=directory / "grown")


REFUSALS: dict[str, Refusal] = {
    "optimizer": Refusal(lambda: groups(optimizer="lion"), GrowthError, "unknown optimizer",
        {"field": "optimizer", "found": "lion", "expected": "adamw, sgd, muon"}),
    "learning rates": Refusal(lambda: groups(lr_rule="half"), GrowthError, "unknown lr_rule",
        {"field": "lr_rule", "found": "half", "expected": "scaled, uniform"}),
    "part": Refusal(lambda: groups(part="embeddings"), GrowthError, "unknown part",
        {"field": "part", "found": "embeddings", "expected": "all, hidden, rest"}),
    "adjustment": Refusal(lambda: groups(adjust_lr_fn="mine"), GrowthError, "unknown adjust_lr_fn",
        {"field": "adjust_lr_fn", "found": "mine", "expected": "original, match_rms_adamw"}),
    "Muon for everything": Refusal(lambda: groups(optimizer="muon", part="all"), GrowthError,
        "Muon trains hidden matrices only",
        {"field": "part", "found": "all", "expected": "hidden", "cure": 'give an AdamW the groups of part="rest"'}),
    "Muon for the rest": Refusal(lambda: groups(optimizer="muon", part="rest"), GrowthError,
        "Muon trains hidden matrices only",
        {"field": "part", "found": "rest", "expected": "hidden", "cure": 'give an AdamW the groups of part="rest"'}),
    "no receipt": Refusal(lambda tmp: groups(receipt=tmp), GrowthError, "no receipt says how this model was grown",
        {"file": "TMP/hyperclone.json", "cure": "pass receipt= with the directory that `hyperclone grow` made"}),
    "another model's plan": Refusal(
        lambda: groups(receipt=planner.make_plan(headers("llama-grouped-tied"), Growth(width=3))), GrowthError,
        "the receipt belongs to another model",
        {"file": "the plan", "field": "hidden", "found": "64", "expected": "96",
         "cure": "pass receipt= with this model's own directory"}),
    "another model's receipt": Refusal(lambda tmp: another_receipt(tmp), GrowthError,
        "the receipt belongs to another model",
        {"file": "TMP/grown/hyperclone.json", "field": "kv_heads", "found": "4", "expected": "8",
         "cure": "pass receipt= with this model's own directory"}),
    "an added parameter": Refusal(lambda: with_adapter(), GrowthError, "the receipt does not know this parameter",
        {"tensor": "adapter.weight", "found": "adapter.weight",
         "cure": "put parameters that were added to the model into groups of their own"}),
    "experts that need other settings": Refusal(lambda: with_another_expert(), GrowthError,
        "a fused parameter holds tensors that need different settings",
        {"tensor": "model.layers.0.mlp.experts.down_proj",
         "found": "model.layers.0.block_sparse_moe.experts.0.w2.weight and "
         "model.layers.0.block_sparse_moe.experts.2.w2.weight"}),
    "first beta": Refusal(lambda: rotated(betas=(1.0, 0.9)), GrowthError, "out of range",
        {"field": "betas, differences", "found": "(1.0, 0.9), 1.0", "expected": "0 <= beta < 1, differences >= 0"}),
    "second beta": Refusal(lambda: rotated(betas=(0.9, 1.0)), GrowthError, "out of range",
        {"field": "betas, differences", "found": "(0.9, 1.0), 1.0", "expected": "0 <= beta < 1, differences >= 0"}),
    "a negative beta": Refusal(lambda: rotated(betas=(-0.1, 0.9)), GrowthError, "out of range",
        {"field": "betas, differences", "found": "(-0.1, 0.9), 1.0", "expected": "0 <= beta < 1, differences >= 0"}),
    "another negative beta": Refusal(lambda: rotated(betas=(0.9, -0.1)), GrowthError, "out of range",
        {"field": "betas, differences", "found": "(0.9, -0.1), 1.0", "expected": "0 <= beta < 1, differences >= 0"}),
    "a negative rate of the differences": Refusal(lambda: rotated(difference_lr=-1e-3), GrowthError, "out of range",
        {"field": "betas, differences", "found": "(0.9, 0.999), -1.0", "expected": "0 <= beta < 1, differences >= 0"}),
    "differences that are no number": Refusal(lambda: rotated(difference_lr=math.nan), GrowthError, "out of range",
        {"field": "betas, differences", "found": "(0.9, 0.999), nan", "expected": "0 <= beta < 1, differences >= 0"}),
    "no learning rate": Refusal(lambda: rotated(lr=0.0), GrowthError, "nothing can be learned with this",
        {"field": "lr", "found": "0.0", "expected": "more than 0"}),
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_is_told_with_place_reason_and_cure(refusal: Refusal, tmp_path: Path) -> None:
    check_refusal(refusal, tmp_path)


# Options -> (name, learning rate, decay, scale of the rate, eps; of SGD none), twice as wide. Hidden matrices have
# s = r = 1/2, what writes s = 1 and r = 1/2, and the last norm, which carries the tied head's 1/n, s = 1/2 and r = 1.
GROUPS: list[tuple[dict[str, Any], list[tuple[Any, ...]]]] = [
    ({}, [("lr x 1, no decay, eps x 0.5", 1e-3, 0, 1, 5e-9), ("lr x 0.5, no decay, eps x 0.5", 5e-4, 0, 0.5, 5e-9),
          ("lr x 0.5, no decay, eps x 1", 5e-4, 0, 0.5, 1e-8)]),
    ({"weight_decay": 0.1}, [
        ("lr x 1, decay x 1, eps x 0.5", 1e-3, 0.1, 1, 5e-9), ("lr x 0.5, decay x 2, eps x 0.5", 5e-4, 0.2, 0.5, 5e-9),
        ("lr x 1, no decay, eps x 0.5", 1e-3, 0, 1, 5e-9), ("lr x 0.5, no decay, eps x 1", 5e-4, 0, 0.5, 1e-8)]),
    ({"optimizer": "sgd", "weight_decay": 0.1}, [
        ("lr x 2, decay x 0.5", 2e-3, 0.05, 2), ("lr x 1, decay x 1", 1e-3, 0.1, 1), ("lr x 2, no decay", 2e-3, 0, 2),
        ("lr x 0.5, no decay", 5e-4, 0, 0.5)]),
    ({"optimizer": "muon", "weight_decay": 0.1}, [("lr x 1, decay x 1, eps x 1", 1e-3, 0.1, 1, 1e-7)]),
    ({"optimizer": "muon", "adjust_lr_fn": "match_rms_adamw"},
     [("lr x 0.707107, no decay, eps x 1", 1e-3 * 0.5**0.5, 0, 0.5**0.5, 1e-7)]),
    ({"part": "rest", "weight_decay": 0.1, "decay_norms_and_biases": True},
     [("lr x 1, decay x 1, eps x 0.5", 1e-3, 0.1, 1, 5e-9), ("lr x 0.5, decay x 2, eps x 1", 5e-4, 0.2, 0.5, 1e-8)]),
    ({"part": "hidden", "eps": 1e-6}, [("lr x 0.5, no decay, eps x 0.5", 5e-4, 0, 0.5, 5e-7)]),
    ({"lr_rule": "uniform", "weight_decay": 0.1},
     [("lr x 1, decay x 1, eps x 1", 1e-3, 0.1, 1, 1e-8), ("lr x 1, no decay, eps x 1", 1e-3, 0, 1, 1e-8)]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), GROUPS, ids=[str(options) for options, _ in GROUPS])
def test_every_group_has_a_readable_name_and_its_settings(
    options: dict[str, Any], expected: list[tuple[Any, ...]]
) -> None:
    found = groups(**options)
    fields = ("lr", "weight_decay", "lr_scale") + (("eps",) if len(expected[0]) == 5 else ())
    assert [group["name"] for group in found] == [name for name, *_ in expected]
    for group, (_, *numbers) in zip(found, expected, strict=True):
        assert group.keys() == {"name", "params", "param_names", *fields}
        assert [group[field] for field in fields] == pytest.approx(numbers, rel=1e-12)
    hidden = [name for group in found for name in group["param_names"] if "_proj" in name]
    rest = [name for group in found for name in group["param_names"] if "_proj" not in name]
    part = "hidden" if options.get("optimizer") == "muon" else options.get("part")
    assert len(hidden) == (0 if part == "rest" else 14)
    assert len(rest) == (0 if part == "hidden" else 6)
    model, _ = grown("llama-grouped-tied")
    assert all(p is model.get_parameter(n) for g in found for p, n in zip(g["params"], g["param_names"], strict=True))


def test_the_rate_of_the_differences_is_relative_and_by_default_the_same() -> None:
    assert rotated().defaults["differences"] == 1.0
    assert rotated(difference_lr=4e-3).defaults["differences"] == pytest.approx(4)
    assert rotated(difference_lr=0.0, betas=(0.0, 0.0)).defaults["betas"] == (0.0, 0.0)  # the ends of what may be
    decay = rotated(weight_decay=0.1, eps=1e-6, lr_rule="uniform").param_groups
    assert [(g["lr"], g["weight_decay"], g["eps"]) for g in decay] == [(1e-3, 0.1, 1e-6), (1e-3, 0.0, 1e-6)]


def one_weight(columns: CopyMap = WIDE, *, compiled: bool = False) -> tuple[torch.nn.Parameter, RotatedAdamW]:
    """A matrix whose rows have two copies each, and its optimizer, with differences that step faster."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(WIDE.new, columns.new, dtype=torch.float64))
    group = {"params": [weight], "param_names": ["w"], "lr": 0.1, "weight_decay": 0.1, "eps": 1e-8}
    rotation = Rotation((WIDE, columns))
    return weight, RotatedAdamW([group], {"w": rotation}, differences=4.0, compile=compiled)


def stepped(weight: torch.nn.Parameter, optimizer: RotatedAdamW, *seeds: int) -> torch.Tensor:
    """The weight after steps with these random gradients."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_the_optimizer_steps_as_it_does(duplicate: Callable[[Any], Any]) -> None:
    weight, optimizer = one_weight(compiled=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rotated_module, "_compiled", lambda: rotated_module._advance)
        stepped(weight, optimizer, 1, 2)
        again_weight, again = duplicate((weight, optimizer))
        found = stepped(again_weight, again, 3)
        assert again._compile
        assert torch.equal(found, stepped(weight, optimizer, 3))


@pytest.mark.parametrize(
    ("columns", "expected"), [(WIDE, True), (copy_map.axis(4, 4), True), (copy_map.axis(4, 12), False)],
    ids=["pairs", "no copies", "three copies"],
)  # fmt: skip
def test_pairs_are_compiled_with_numbers_that_may_change_and_more_copies_are_not(
    columns: CopyMap, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[rotated_module.Scalars] = []

    def compiled(*arguments: Any, scalars: rotated_module.Scalars, **options: Any) -> None:
        assert torch._dynamo.config.recompile_limit >= 64
        calls.append(scalars)
        rotated_module._advance(*arguments, scalars=scalars, **options)

    monkeypatch.setattr(rotated_module, "_compiled", lambda: compiled)
    before = torch._dynamo.config.recompile_limit
    found, plain = (stepped(*one_weight(columns, compiled=which), 1, 2) for which in (True, False))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-14)
    assert bool(calls) is expected
    assert all(number.dtype == torch.float64 and number.shape == () for scalars in calls for number in scalars)
    assert torch._dynamo.config.recompile_limit == before


def test_a_larger_limit_of_what_torch_compiles_stays() -> None:
    with torch._dynamo.config.patch(recompile_limit=100), rotated_module._many_shapes():
        assert torch._dynamo.config.recompile_limit == 100
    with rotated_module._many_shapes():
        assert torch._dynamo.config.recompile_limit == 64


def test_a_closure_is_called_once_with_gradients_and_its_loss_is_returned() -> None:
    weight, optimizer = one_weight()
    before = weight.detach().clone()

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == pytest.approx(float(before.square().sum()))
    assert not torch.equal(weight.detach(), before)
    assert optimizer.step() is None
