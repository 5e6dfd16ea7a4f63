"""RotatedAdamW: the scaling rule in the coordinates of copies, and what happens to the differences between them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperclone
from hyperclone import Growth
from hyperclone.errors import GrowthError
from hyperclone.expansion import copy_map
from hyperclone.optim.rotated_adamw import RotatedAdamW, rotated_adamw
from hyperclone.optim.rotation import Rotation
from hyperclone.planning.plan import Plan
from tests.helpers.training_steps import DECAY, FAMILIES, LR, batches, grow, in_float64, plain, source, train

__all__ = ["in_float64"]
STEPS = 12


def rotated(model: Any, made: Plan, **options: Any) -> RotatedAdamW:
    return rotated_adamw(model, lr=LR["adamw"], weight_decay=DECAY, betas=(0.9, 0.95), receipt=made, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clone_without_noise_follows_its_source(name: str) -> None:
    small = source(name)
    wide, made = grow(small, Growth(width=2, noise="none", allow_rounding=True))
    expected = train(small, [plain(small, "adamw")], batches(STEPS))
    # Only rounding makes copies differ here, and Adam would take it for a gradient.
    assert train(wide, [rotated(wide, made, difference_lr=0.0)], batches(STEPS)) == pytest.approx(expected, abs=1e-10)
    assert abs(expected[-1] - expected[0]) > 1e-3


@pytest.mark.parametrize(
    "growth", [Growth(width=4, noise="none"), Growth(hidden="2x", heads="2x", ffn="3x", noise="none")]
)
def test_it_does_so_whatever_the_factors(growth: Growth) -> None:
    small = source("mistral-window")
    wide, made = grow(small, growth)
    expected = train(small, [plain(small, "adamw")], batches(STEPS))
    assert train(wide, [rotated(wide, made, difference_lr=0.0)], batches(STEPS)) == pytest.approx(expected, abs=1e-10)


def test_a_parameter_without_copies_is_trained_by_adamw() -> None:
    ours, theirs = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.zeros(5, 3))
    theirs.data.copy_(ours.data)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8}
    whole = Rotation((copy_map.axis(5, 5), copy_map.axis(3, 3)))
    a = RotatedAdamW([{"params": [ours], "param_names": ["w"], **settings}], {"w": whole}, betas=(0.9, 0.95))
    b = torch.optim.AdamW([{"params": [theirs], **settings}], betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ours.grad = torch.randn(5, 3, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def helmert(count: int) -> torch.Tensor:
    """(c, c) orthogonal: the first row constant, row b the mean of copies before b against copy b."""
    rows = torch.zeros(count, count, dtype=torch.float64)
    rows[0] = count**-0.5
    for b in range(1, count):
        rows[b, :b], rows[b, b] = (b * (b + 1)) ** -0.5, -((b / (b + 1)) ** 0.5)
    return rows


def dense(found: copy_map.CopyMap) -> torch.Tensor:
    """(D, D): the change of coordinates of one dimension as a matrix."""
    whole = torch.eye(found.new, dtype=torch.float64)
    for unit in range(found.old):
        own = ((found.source == unit) & (found.count > 0)).nonzero().flatten()
        own = own[found.number[own].argsort()]
        whole[own[:, None], own] = helmert(len(own))
    return whole


AXES = st.builds(lambda old, more, padded: copy_map.axis(old, old + more, padded=padded),
                 st.integers(1, 5), st.integers(0, 9), st.booleans())  # fmt: skip
MAPS = AXES | st.builds(copy_map.product, st.lists(AXES, min_size=2, max_size=2)) | st.builds(
    copy_map.concatenate, st.lists(AXES, min_size=2, max_size=3))  # fmt: skip


@given(MAPS, AXES, st.integers(0, 2**31))
def test_the_rotation_is_helmerts_along_both_dimensions(
    rows: copy_map.CopyMap, columns: copy_map.CopyMap, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows.new, columns.new, generator=generator, dtype=torch.float64)
    rotation, (left, right) = Rotation((rows, columns)), (dense(rows), dense(columns))
    assert torch.allclose(left @ left.T, torch.eye(rows.new, dtype=torch.float64))
    turned = rotation.forward(value)
    assert torch.allclose(turned, left @ value @ right.T, atol=1e-12)
    assert torch.allclose(rotation.inverse(turned), value, atol=1e-12)
    if rotation.turns:
        equal = value[rows.source][:, columns.source]  # copies that are equal have no differences
        differences = torch.stack([one.expand(value.shape) for _, one in rotation.factors]).any(0)
        assert not rotation.forward(equal)[differences].abs().gt(1e-12).any()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_equal_copies_have_no_differences_at_all(count: int) -> None:
    """Not even by rounding, which Adam would take for a gradient."""
    rotation = Rotation((copy_map.axis(50, 50 * count),))
    for dtype in (torch.float32, torch.bfloat16) if count < 5 else (torch.float32,):
        value = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype).repeat(count)
        assert not rotation.forward(value)[50:].any(), dtype


@pytest.mark.parametrize("sizes", [(2, 3), (2, 4), (4, 5), (3, 9)])
def test_where_copies_agree_every_unit_steps_as_adamw_does_however_often_it_is_copied(sizes: tuple[int, int]) -> None:
    """Also next to eps, which the rotation must not weigh differently for units with more or fewer copies."""
    axis, generator = copy_map.axis(*sizes), torch.Generator().manual_seed(0)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}
    ours = torch.nn.Parameter(torch.randn(sizes[0], 5, generator=generator)[axis.source])
    theirs = torch.nn.Parameter(ours.detach().clone())
    rotation = Rotation((axis, copy_map.axis(5, 5)))
    a = RotatedAdamW([{"params": [ours], "param_names": ["w"], **settings}], {"w": rotation}, betas=(0.9, 0.95))
    b = torch.optim.AdamW([{"params": [theirs], **settings}], betas=(0.9, 0.95))
    for _ in range(10):
        ours.grad = 1e-3 * torch.randn(sizes[0], 5, generator=generator)[axis.source]
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)


def test_the_first_step_moves_every_coordinate_by_the_learning_rate_however_small_its_gradient() -> None:
    """Adam's first step is the gradient's sign: in the coordinates of copies, not in those of entries."""
    rows = columns = copy_map.axis(2, 4)
    common, apart = torch.randn(2, 2, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    gradient = common.repeat(2, 2) + 1e-4 * apart
    steps = {}
    for differences in (1.0, 0.25, 1.5, 2.0, 4.0):
        weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
        rotation = Rotation((rows, columns))
        group = {"params": [weight], "param_names": ["w"], "lr": 0.5, "weight_decay": 0.0, "eps": 1e-16}
        optimizer = RotatedAdamW([group], {"w": rotation}, differences=differences)
        weight.grad = gradient
        optimizer.step()
        steps[differences] = rotation.forward(weight.detach())
    found = steps[1.0]
    assert torch.allclose(found.abs(), torch.full((4, 4), 0.5 * 2.0, dtype=torch.float64))  # lr sqrt(k), k = 4 copies
    assert torch.equal(found.sign(), -Rotation((rows, columns)).forward(gradient).sign())
    assert torch.allclose(steps[0.25][:2, :2], found[:2, :2])
    for differences in (0.25, 1.5, 2.0, 4.0):
        ratio = torch.full((4, 4), differences, dtype=torch.float64)
        ratio[:2, :2] = 1  # everything else is a difference along rows or columns, or both
        assert torch.allclose(steps[differences], ratio * found)
    raw = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))  # AdamW: copies of a weight move alike
    raw.grad = gradient
    torch.optim.AdamW([raw], lr=0.5, weight_decay=0.0).step()
    assert torch.allclose(raw[:2], raw[2:])


def test_it_resumes_from_its_state_bit_for_bit() -> None:
    data, found = batches(6), []
    for stop in (None, 3):
        torch.manual_seed(0)
        wide, made = grow(source("llama-grouped-tied"), Growth(width=2))
        optimizer = rotated(wide, made)
        if stop:
            losses = train(wide, [optimizer], data[:stop])
            saved = optimizer.state_dict()
            optimizer = rotated(wide, made)
            optimizer.load_state_dict(saved)
            found.append(losses + train(wide, [optimizer], data[stop:]))
        else:
            found.append(train(wide, [optimizer], data))
    assert found[0] == found[1]


def test_grown_moments_of_bf16_parameters_survive_a_checkpoint() -> None:
    """torch would round the number of steps before the growth to bf16 (1003 to 1004), past the steps taken since."""
    settings = {"param_names": ["w"], "lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8}
    halves = {"w": Rotation((copy_map.axis(2, 4), copy_map.axis(3, 3)))}
    found = []
    for loaded in (False, True):
        weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
        optimizer = RotatedAdamW([{"params": [weight], **settings}], halves)
        moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.ones_like(weight)}
        optimizer.state[weight] = optimizer.grown_moments(weight, "w", moments, 1003.0)
        if loaded:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = RotatedAdamW([{"params": [weight], **settings}], halves)
            optimizer.load_state_dict(saved)
        weight.grad = torch.arange(12.0).reshape(4, 3).bfloat16()
        optimizer.step()
        found.append(weight.detach())
    assert torch.equal(*found)


def test_with_grown_moments_what_is_common_goes_on_and_differences_begin_anew() -> None:
    """In rotated coordinates these are two AdamWs of torch: one with the source's moments, one without any."""
    rotation, generator = Rotation((copy_map.axis(2, 4), copy_map.axis(3, 3))), torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"weight_decay": 0.0, "eps": 1e-30}
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    optimizer = RotatedAdamW(
        [{"params": [weight], "param_names": ["w"], "lr": 0.1, **settings}], {"w": rotation}, betas=(0.8, 0.95),
        differences=3.0,
    )  # fmt: skip
    first, second = (torch.rand(2, 3, generator=generator, dtype=torch.float64).repeat(2, 1) for _ in range(2))
    optimizer.state[weight] = optimizer.grown_moments(weight, "w", {"exp_avg": first, "exp_avg_sq": second}, 7.0)
    turned = rotation.forward(weight.detach())
    common, difference = (torch.nn.Parameter(part.clone()) for part in turned.chunk(2))
    root = 2**0.5  # of the number of copies
    adamws = [
        torch.optim.AdamW([common], lr=0.1 * root, betas=(0.8, 0.95), **settings),
        torch.optim.AdamW([difference], lr=0.1 * root * 3, betas=(0.8, 0.95), **settings),
    ]
    adamws[0].state[common] = {
        "step": torch.tensor(7.0), "exp_avg": first[:2] * root, "exp_avg_sq": second[:2] * 2
    }  # fmt: skip
    for _ in range(4):
        weight.grad = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        common.grad, difference.grad = rotation.forward(weight.grad).chunk(2)
        for one in (optimizer, *adamws):
            one.step()
        torch.testing.assert_close(rotation.forward(weight.detach()), torch.cat([common, difference]).detach())


def test_it_parts_copies_sooner_than_adamw() -> None:
    data, differences = batches(20), {}
    for name in ("adamw", "rotated"):
        wide, made = grow(source("llama-grouped-tied"), Growth(width=2, noise="split", snr_db=30.0, order="tiled"))
        groups = hyperclone.param_groups(wide, lr=LR["adamw"], weight_decay=DECAY, receipt=made)
        train(wide, [rotated(wide, made) if name == "rotated" else torch.optim.AdamW(groups, betas=(0.9, 0.95))], data)
        weight = wide.model.layers[0].mlp.up_proj.weight.detach()
        half = weight.shape[0] // 2
        differences[name] = float((weight[:half] - weight[half:]).norm() / weight.norm())
    assert differences["rotated"] > 2 * differences["adamw"]


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        ("llama-grouped-tied", Growth(width="1.5x")),
        ("gpt2-tied", Growth(width=2)),
        ("llama-grouped-untied", Growth(width=2, layers="2x")),
        ("mixtral", Growth(width=2)),
        ("qwen3-grouped-tied", Growth(width=3)),
        ("neox-tied", Growth(width=2, expansion="diagonal")),
    ],
    ids=["padding", "transposed", "deeper", "experts", "three", "diagonal"],
)
def test_whatever_was_grown_can_be_trained_and_its_optimizer_copied(name: str, growth: Growth) -> None:
    wide, made = grow(source(name), growth)
    optimizer = rotated(wide, made, difference_lr=4 * LR["adamw"])
    losses = train(wide, [optimizer], [batches(1)[0]] * 6)
    assert losses[-1] < losses[0]
    again = copy.deepcopy(optimizer)
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    train(wide, [again], batches(1))


def test_what_makes_no_sense_is_refused() -> None:
    wide, made = grow(source("llama-grouped-tied"), Growth(width=2))
    for asked in ({"lr": 0.0}, {"difference_lr": -1e-3}, {"betas": (0.9, 1.0)}):
        with pytest.raises(GrowthError):
            rotated_adamw(wide, **{"lr": 1e-3, "receipt": made, **asked})  # type: ignore[arg-type]


def test_without_a_receipt_it_says_what_to_do() -> None:
    with pytest.raises(GrowthError, match="no receipt"):
        rotated_adamw(source("llama-grouped-tied"), lr=1e-3)
