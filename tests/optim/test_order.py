"""A clone and the same clone with its copies side by side are one model in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.expansion import grown_tensors
from hyperclone.planning.plan import Plan
from tests.helpers.training_steps import batches, grow, in_float64, source, train

__all__ = ["in_float64"]


def permuted(weights: dict[str, torch.Tensor], tiled: Plan, side_by_side: Plan) -> dict[str, torch.Tensor]:
    """A tiled model's weights in the other order: each copy of each unit where that has it."""
    result = {}
    planned = {tensor.name: tensor for tensor in side_by_side.tensors}
    for tensor in tiled.tensors:
        if tensor.name not in weights:
            continue
        value = weights[tensor.name]
        maps = [
            grown_tensors.map_of(one, plan).dims
            for one, plan in ((tensor, tiled), (planned[tensor.name], side_by_side))
        ]
        for dim, (before, after) in enumerate(zip(*maps, strict=True)):
            place = {(int(u), int(n)): i for i, (u, n) in enumerate(zip(before.source, before.number, strict=True))}
            index = [place[int(u), int(n)] for u, n in zip(after.source, after.number, strict=True)]
            value = value.index_select(dim, torch.tensor(index))
        result[tensor.name] = value.contiguous()
    return result


@pytest.mark.parametrize(("optimizer", "tolerance"), [("rotated", 1e-10), ("muon", 1e-8)])  # Muon amplifies rounding
@pytest.mark.parametrize("name", ["llama-grouped-tied", "gpt2-untied", "falcon-40b"])
def test_a_clone_and_itself_in_the_other_order_have_the_same_curve(name: str, optimizer: str, tolerance: float) -> None:
    small = source(name)
    tiled, tiled_plan = grow(small, Growth(width=2))
    other, other_plan = grow(small, Growth(width=2, order="interleaved"))
    weights = permuted(dict(tiled.state_dict()), tiled_plan, other_plan)
    assert not other.load_state_dict(weights, strict=False).unexpected_keys
    make: Any = hyperclone.rotated_adamw if optimizer == "rotated" else hyperclone.rotated_muon
    curves = [
        train(model, [make(model, lr=3e-3, weight_decay=0.1, difference_lr=1e-2, receipt=plan)], batches(12))
        for model, plan in ((tiled, tiled_plan), (other, other_plan))
    ]
    assert curves[1] == pytest.approx(curves[0], abs=tolerance)
    assert abs(curves[0][-1] - curves[0][0]) > 1e-3
