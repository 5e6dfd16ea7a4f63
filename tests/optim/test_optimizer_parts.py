"""Param groups and rotated AdamW part by part: refusals word for word, groups, coordinates, numbers, shards."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.conversion import receipt as receipts
from hyperclone.errors import GrowthError
from hyperclone.expansion import compiled as kernels
from hyperclone.expansion import copy_map
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.optim import param_groups as groups_module
from hyperclone.optim import rotated_adamw as rotated_module
from hyperclone.optim import rotated_step
from hyperclone.optim.rotated_adamw import RotatedAdamW, rotated_adamw, rotations
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


def test_options_of_the_optimizer_have_the_defaults_that_they_say() -> None:
    assert not rotated()._compile
    assert rotated(compile=True)._compile
    assert {group["weight_decay"] for group in rotated().param_groups} == {0.0}


@pytest.mark.parametrize("name", ["gpt2-tied", "mixtral"])
def test_every_parameter_has_a_rotation_of_its_dimensions(name: str) -> None:
    """Also where a model that was grown in memory says itself how: without a receipt."""
    model = hyperclone.grow_model(build(name), WIDER)
    found = rotations(model)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == found.keys()
    for parameter, rotation in found.items():
        assert tuple(axis.new for axis in rotation.maps) == parameters[parameter].shape
        old = tuple(axis.old for axis in rotation.maps)
        assert old == build(name).get_parameter(parameter).shape


def test_a_rotation_goes_to_a_device_with_its_indices_and_factors() -> None:
    rotation = Rotation((copy_map.product([copy_map.axis(3, 3), copy_map.axis(2, 4)]), copy_map.axis(4, 12)))
    assert rotation.to(torch.device("cpu")).to(torch.device("cpu")) is not rotation
    here = rotation.to(torch.device("cpu"))
    assert here.to(torch.device("cpu")) is here
    there = rotation.to(torch.device("meta"))
    assert there.maps == rotation.maps
    assert there.device == torch.device("meta")
    indices = [one for _, copies in there.turns for one in copies if isinstance(one, torch.Tensor)]
    assert indices  # of copies that do not lie side by side
    assert {one.device.type for one in (*indices, *there.scales)} == {"meta"}


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


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps by torch's operations."""
    monkeypatch.setattr(kernels, "kernels", lambda: None)


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_the_optimizer_steps_as_it_does(duplicate: Callable[[Any], Any]) -> None:
    weight, optimizer = one_weight(compiled=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rotated_step, "compiled", lambda: rotated_step.advance)
        stepped(weight, optimizer, 1, 2)
        again_weight, again = duplicate((weight, optimizer))
        found = stepped(again_weight, again, 3)
        assert again._compile
        assert torch.equal(found, stepped(weight, optimizer, 3))


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("columns", "expected"), [(WIDE, True), (copy_map.axis(4, 4), True), (copy_map.axis(4, 12), False)],
    ids=["pairs", "no copies", "three copies"],
)  # fmt: skip
def test_pairs_are_compiled_with_numbers_that_may_change_and_more_copies_are_not(
    columns: CopyMap, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def compiled(*arguments: Any, scalars: rotated_step.Scalars, **options: Any) -> None:
        assert torch._dynamo.config.recompile_limit >= 64
        calls.append(scalars)
        rotated_step.advance(*arguments, scalars=scalars, **options)

    monkeypatch.setattr(rotated_step, "compiled", lambda: compiled)
    before = torch._dynamo.config.recompile_limit
    found, plain = (stepped(*one_weight(columns, compiled=which), 1, 2) for which in (True, False))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-14)
    assert bool(calls) is expected
    compiled_calls = len(calls)
    stepped(*one_weight(columns), 1)
    assert len(calls) == compiled_calls == (2 if expected else 0)
    assert all(number.dtype == torch.float64 and number.shape == () for scalars in calls for number in scalars)
    assert torch._dynamo.config.recompile_limit == before


def test_a_larger_limit_of_what_torch_compiles_stays() -> None:
    with torch._dynamo.config.patch(recompile_limit=100), rotated_step.many_shapes():
        assert torch._dynamo.config.recompile_limit == 100
    with rotated_step.many_shapes():
        assert torch._dynamo.config.recompile_limit == 64


def test_a_closure_is_called_once_with_gradients_and_its_loss_is_returned() -> None:
    weight, optimizer = one_weight()
    before = weight.detach().clone()

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return float(loss.detach())

    assert optimizer.step(closure) == pytest.approx(float(before.square().sum()))
    assert not torch.equal(weight.detach(), before)
    assert optimizer.step() is None


def test_without_settings_it_has_those_of_adamw_without_decay() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    ours = RotatedAdamW([{"params": [weight], "param_names": ["w"]}], {}).param_groups[0]
    theirs = torch.optim.AdamW([weight], weight_decay=0.0).param_groups[0]
    for field in ("lr", "betas", "eps", "weight_decay"):
        assert ours[field] == theirs[field]
    assert ours["differences"] == 1.0


def test_sgd_has_no_eps_even_when_one_is_given() -> None:
    assert all("eps" not in group and "eps" not in group["name"] for group in groups(optimizer="sgd", eps=1e-6))


def test_a_plan_of_a_users_family_is_read_by_that_family() -> None:
    """Its axes have names of their own."""
    whole = headers("llama-grouped-tied")
    text = (Path(registry.__file__).parent / whole.family.file).read_text()
    mine = family_file.parse(re.sub(r"\bvocab\b", "words", text), name="mine", file="mine.toml")
    plan = planner.make_plan(replace(whole, user_family=mine), WIDER)
    assert "words" in plan.sizes
    model, _ = grown("llama-grouped-tied")
    found = hyperclone.param_groups(model, lr=1e-3, receipt=plan)
    assert [group["name"] for group in found] == [group["name"] for group in groups()]


def test_coordinates_are_made_once_for_each_device_in_a_type_that_the_arithmetic_has() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4, dtype=torch.bfloat16))
    rotation = Rotation((WIDE, copy_map.axis(4, 4)))
    optimizer = RotatedAdamW([{"params": [weight], "param_names": ["w"]}], {"w": rotation})
    assert optimizer._coordinates(weight, "other") is None
    found = optimizer._coordinates(weight, "w")
    assert found is not None
    assert optimizer._coordinates(weight, "w") is found
    assert isinstance(found.rotation, Rotation)
    assert found.rotation.device == weight.device
    assert {one.dtype for one in (*found.copy_roots, *found.differences)} == {torch.float32}
    assert len(found.copy_roots) == len(found.differences) == 1  # columns have no copies
    assert found.copy_roots[0].flatten().tolist() == pytest.approx([2**0.5] * 8)
    assert found.differences[0].flatten().tolist() == [0.0] * 4 + [1.0] * 4
    optimizer._placed[weight] = torch.device("meta"), rotated_step.Coordinates(found.rotation, (), ())
    again = optimizer._coordinates(weight, "w")
    assert again is not None
    assert isinstance(again.rotation, Rotation)
    assert again.rotation.device == weight.device


def test_numbers_go_to_the_device_of_their_parameter() -> None:
    there = torch.nn.Parameter(torch.zeros(8, 4, device="meta"))
    rotation = Rotation((WIDE, copy_map.axis(4, 4)))
    found = RotatedAdamW([{"params": [there], "param_names": ["w"]}], {"w": rotation})._coordinates(there, "w")
    assert found is not None
    assert {one.device.type for one in (*found.copy_roots, *found.differences)} == {"meta"}


@pytest.mark.parametrize("before", [0.0, 3.0])
def test_the_numbers_of_a_step_hold_all_that_would_cost_a_pass(before: float) -> None:
    group = {"lr": 0.1, "weight_decay": 0.5, "eps": 1e-3, "betas": (0.5, 0.75), "differences": 4.0}
    nothing = torch.empty(0)
    update = rotated_step.Update(nothing, nothing, nothing, nothing, None, group, step=5, before=before)
    found = rotated_step.Scalars.of(update)
    first, second = 1 - 0.5**5, (1 - 0.75**5) ** 0.5  # bias corrections
    assert found.step_size == pytest.approx(0.1 * second / first, rel=1e-12)
    assert found.eps == pytest.approx(1e-3 * second, rel=1e-12)
    assert found.kept == pytest.approx(0.95, rel=1e-12)
    fresh = 1.0 if not before else first / second * (1 - 0.75**2) ** 0.5 / (1 - 0.5**2)
    assert found.difference_ratio == pytest.approx(4 * fresh, rel=1e-12)
    common = found.times(2.0, 0.5)  # of pairs along both dimensions: four copies
    assert common.eps == pytest.approx(1e-3 * 2 * second, rel=1e-12)
    assert common.step_size == pytest.approx(0.1 * 2 * second / first / 2, rel=1e-12)
    assert common[2:] == found[2:]


@pytest.fixture
def one_process() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # it is documented there
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
def test_a_sharded_parameter_steps_as_a_whole_one_and_stays_sharded(placement: Any, one_process: DeviceMesh) -> None:
    weight, optimizer = one_weight(copy_map.axis(4, 6))
    expected = stepped(weight, optimizer, 1, 2)
    weight, optimizer = one_weight(copy_map.axis(4, 6))
    sharded = torch.nn.Parameter(distribute_tensor(weight.detach(), one_process, [placement]))
    group = {**optimizer.param_groups[0], "params": [sharded]}
    optimizer = RotatedAdamW([group], optimizer._rotations, differences=4.0)
    for seed in (1, 2):
        gradient = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        sharded.grad = distribute_tensor(gradient, one_process, [placement])
        optimizer.step()
    found = sharded.detach()
    assert isinstance(found, DTensor)
    assert found.placements == (placement,)
    torch.testing.assert_close(found.full_tensor(), expected, rtol=0, atol=1e-14)
    state = optimizer.state[sharded]["rotated_avg"]
    assert isinstance(state, DTensor)
    assert state.placements == (placement,)


def test_a_shard_whose_units_have_one_copy_each_starts_from_its_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of three processes the last, where 4 units became 6."""
    monkeypatch.setattr(rotated_module, "rotation_here", lambda rotation, parameter: Rotation((copy_map.axis(2, 2),)))
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = RotatedAdamW([{"params": [weight], "param_names": ["w"]}], {"w": Rotation((copy_map.axis(1, 2),))})
    moments = {"exp_avg": torch.tensor([1.0, 2.0]), "exp_avg_sq": torch.tensor([3.0, 4.0])}
    state = optimizer.grown_moments(weight, "w", moments, 5)
    assert state["rotated_avg"].tolist() == [1, 2]
    assert state["rotated_avg_sq"].tolist() == [3, 4]


def test_flat_buffers_in_the_place_of_parameters_are_refused() -> None:
    """As DeepSpeed's ZeRO, whose optimizers put one buffer for each group into the groups, and FSDP1 have them."""
    weight, optimizer = one_weight()
    flat = torch.nn.Parameter(weight.detach().flatten())
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(GrowthError, match="not the model's own parameters") as refused:
        optimizer.step()
    assert "ZeRO" in str(refused.value)
    assert refused.value.details["found"] == f"shape ({flat.numel()},)"
    optimizer.param_groups[0]["param_names"] = ["w", "v"]
    with pytest.raises(GrowthError, match="2, one for each name"):
        optimizer.step()
