"""RotatedAdamW: the law in the coordinates of copies, and what it does to the differences between them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import DECAY, FAMILIES, LR, batches, in_double, in_float64, plain, source, train

import hyperclone
from hyperclone import Growth, copies, planning
from hyperclone.errors import GrowthError
from hyperclone.memory import InMemory
from hyperclone.plans import Plan
from hyperclone.training.rotated import RotatedAdamW, Rotation, basis, rotated_adamw

__all__ = ["in_float64"]
STEPS = 12


def grow(model: Any, growth: Growth) -> tuple[Any, Plan]:
    made = planning.make(InMemory(model), growth)
    return in_double(hyperclone.grow_model(model, growth)), made


def rotated(model: Any, made: Plan, **options: Any) -> RotatedAdamW:
    return rotated_adamw(model, lr=LR["adamw"], weight_decay=DECAY, betas=(0.9, 0.95), receipt=made, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clone_without_noise_follows_its_source(name: str) -> None:
    small = source(name)
    wide, made = grow(small, Growth(width=2, noise="none", allow_rounding=True))
    expected = train(small, [plain(small, "adamw")], batches(STEPS))
    # Only rounding tells copies apart here, and Adam would take it for a gradient.
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
    whole = Rotation((copies.axis(5, 5), copies.axis(3, 3)))
    a = RotatedAdamW([{"params": [ours], "param_names": ["w"], **settings}], {"w": whole}, betas=(0.9, 0.95))
    b = torch.optim.AdamW([{"params": [theirs], **settings}], betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ours.grad = torch.randn(5, 3, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


AXES = st.builds(lambda old, more, filled: copies.axis(old, old + more, filled=filled),
                 st.integers(1, 6), st.integers(0, 9), st.booleans())  # fmt: skip


@given(AXES, AXES, st.integers(0, 2**31))
def test_the_rotation_is_orthogonal_and_its_common_coordinate_is_the_copies_mean(
    rows: copies.Copies, columns: copies.Copies, seed: int
) -> None:
    value = torch.randn(rows.new, columns.new, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = Rotation((rows, columns))
    turned = rotation.forward(value)
    assert torch.allclose(rotation.inverse(turned), value, atol=1e-12)
    assert float(turned.norm()) == pytest.approx(float(value.norm()))
    for i in range(rows.new):
        for j in range(columns.new):
            if rows.number[i] or columns.number[j] or not rows.count[i] or not columns.count[j]:
                continue
            of_row = (rows.source == rows.source[i]) & (rows.count > 0)
            of_column = (columns.source == columns.source[j]) & (columns.count > 0)
            block = value[of_row][:, of_column]
            assert float(turned[i, j]) == pytest.approx(float(block.mean()) * math.sqrt(block.numel()))
    equal = value[rows.source][:, columns.source]  # copies that are equal have no differences
    assert not torch.where(rotation.apart()[0] | rotation.apart()[1], rotation.forward(equal), 0).abs().gt(1e-12).any()


def test_the_first_step_moves_every_coordinate_by_the_learning_rate_however_small_its_gradient() -> None:
    """Adam's first step is the gradient's sign: in the coordinates of copies, not in those of entries."""
    rows = columns = copies.axis(2, 4)
    common, apart = torch.randn(2, 2, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    gradient = common.repeat(2, 2) + 1e-4 * apart
    steps = {}
    for differences in (1.0, 0.25):
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
    assert torch.allclose(steps[0.25][2:], 0.25 * found[2:])
    raw = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))  # AdamW: copies of a weight move alike
    raw.grad = gradient
    torch.optim.AdamW([raw], lr=0.5, weight_decay=0.0).step()
    assert torch.allclose(raw[:2], raw[2:])


def test_basis_is_helmerts() -> None:
    assert torch.allclose(basis(2), torch.tensor([[1, 1], [1, -1]], dtype=torch.float64) / math.sqrt(2))
    for count in range(1, 7):
        assert torch.allclose(basis(count) @ basis(count).T, torch.eye(count, dtype=torch.float64))
        assert torch.allclose(basis(count)[0], torch.full((count,), count**-0.5, dtype=torch.float64))


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
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


def test_it_parts_copies_sooner_than_adamw() -> None:
    data, apart = batches(20), {}
    for name in ("adamw", "rotated"):
        wide, made = grow(source("llama-grouped-tied"), Growth(width=2, noise="split", snr_db=30.0))
        groups = hyperclone.param_groups(wide, lr=LR["adamw"], weight_decay=DECAY, receipt=made)
        train(wide, [rotated(wide, made) if name == "rotated" else torch.optim.AdamW(groups, betas=(0.9, 0.95))], data)
        weight = wide.model.layers[0].mlp.up_proj.weight.detach()
        half = weight.shape[0] // 2
        apart[name] = float((weight[:half] - weight[half:]).norm() / weight.norm())
    assert apart["rotated"] > 2 * apart["adamw"]


def test_without_a_receipt_it_says_what_to_do() -> None:
    with pytest.raises(GrowthError, match="no receipt"):
        rotated_adamw(source("llama-grouped-tied"), lr=1e-3)
