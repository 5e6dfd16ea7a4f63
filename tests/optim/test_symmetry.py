"""What copies do under training with one learning rate everywhere, by real optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.conversion.in_memory import InMemory
from hyperclone.planning import planner
from tests.helpers.models import build

STEPS = 12


def batches(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(300, (4, 16), generator=generator) for _ in range(STEPS)]


def train(model: Any, groups: list[dict[str, Any]]) -> list[float]:
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses = []
    for ids in batches():
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def one_group(model: Any) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "lr": 3e-3, "weight_decay": 0.1, "eps": 1e-6}]


def divergence(model: Any, n: int) -> float:
    """Largest difference between copies in the embedding, and between copies of feed-forward rows."""
    embedding = model.get_input_embeddings().weight.detach().chunk(n, 1)
    up = model.model.layers[0].mlp.up_proj.weight.detach()
    rows = up.chunk(n, 0)
    return max(
        max(float((embedding[0] - e).abs().max()) for e in embedding[1:]),
        max(float((rows[0] - r).abs().max()) for r in rows[1:]),
    )


def test_without_noise_the_symmetric_clone_stays_locked_for_ever() -> None:
    grown = hyperclone.grow_model(build("llama-grouped-tied"), Growth(width=2, noise="none", order="tiled")).train()
    train(grown, one_group(grown))
    assert divergence(grown, 2) == 0.0


@pytest.mark.parametrize(
    "growth",
    [
        Growth(width=2, order="tiled"),
        Growth(width=2, noise="gaussian", order="tiled"),
        Growth(width=2, noise="none", expansion="diagonal", order="tiled"),
        Growth(width=3, order="tiled"),
    ],
    ids=["default", "gaussian", "plain-diagonal", "three"],
)
def test_otherwise_the_copies_separate(growth: Growth) -> None:
    grown = hyperclone.grow_model(build("llama-grouped-tied"), growth).train()
    train(grown, one_group(grown))
    assert divergence(grown, int(growth.width or 1)) > 1e-3


def test_symmetry_is_broken_by_default_and_a_locked_clone_is_announced() -> None:
    model = InMemory(build("llama-grouped-tied"))
    assert not planner.make_plan(model, Growth(width=2)).warnings
    (warning,) = planner.make_plan(model, Growth(width=2, noise="none")).warnings
    assert "never diverge" in warning
    assert not planner.make_plan(model, Growth(width=2, noise="none", expansion="diagonal")).warnings


@pytest.mark.parametrize(("dtype", "snr_db"), [(torch.bfloat16, 40.0), (torch.float16, 60.0), (torch.float32, -1.0)])
def test_noise_that_the_stored_type_cannot_hold_is_refused(dtype: torch.dtype, snr_db: float) -> None:
    """At 60 dB in bf16 a noisy diagonal split would hold no noise at all: a locked clone, without a warning."""
    model = InMemory(build("llama-grouped-tied", dtype=dtype))
    with pytest.raises(hyperclone.HypercloneError, match="snr_db"):
        planner.make_plan(model, Growth(width=2, snr_db=snr_db))
    assert planner.make_plan(model, Growth(width=2, snr_db=20, noise="gaussian")).tensors


def test_gaussian_shares_that_would_cancel_are_refused() -> None:
    with pytest.raises(hyperclone.HypercloneError, match="snr_db"):
        planner.make_plan(InMemory(build("llama-grouped-tied")), Growth(width=2, snr_db=0, noise="gaussian"))
