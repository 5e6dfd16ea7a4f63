"""The optimizers of copies in several processes: the weights of one, and nothing sent that is not needed."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperclone.expansion import copy_map
from hyperclone.optim import matrix_sharing
from hyperclone.optim.sharded_rotation import copies_elsewhere, shard_bounds
from tests.helpers import optimizers_in_processes
from tests.helpers.optimizers_in_processes import OPTIMIZERS, ORDERS, SHARDINGS, SIZES, STEPS, trained

MATRICES = 3  # and as many biases


def sends(optimizer: str, order: str, sharding: str, processes: int) -> int:
    """How often the processes communicate in a step."""
    if sharding == "ddp":  # each result of Muon is told once; AdamW has all gradients
        return MATRICES if optimizer == "muon" else 0
    rows = SIZES[processes][1:]  # of each matrix, and of its bias; pairs of copies fit where shards have an even number
    there_and_back = 2 * sum(order == "tiled" or math.ceil(size / processes) % 2 for size in rows)
    if optimizer == "rotated":
        return 2 * there_and_back
    return 2 * math.ceil(MATRICES / processes) + there_and_back


@pytest.mark.slow
@pytest.mark.parametrize("processes", SIZES)
def test_several_processes_step_as_one_and_send_no_more_than_they_must(processes: int) -> None:
    """To 1e-14 in float64. Rotated AdamW sends nothing where shards hold whole groups of copies."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *command, str(Path(optimizers_in_processes.__file__))], capture_output=True, text=True,
        timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for optimizer, order, sharding in itertools.product(OPTIMIZERS, ORDERS, SHARDINGS):
        case = f"{optimizer} {order} {sharding}"
        losses, weights, sent = found[case]
        one_losses, one_weights, none = trained(optimizer, order, sharding, processes=processes)
        assert none == 0
        assert losses == pytest.approx(one_losses, abs=1e-14), case
        for mine, whole in zip(weights, one_weights, strict=True):
            assert mine == pytest.approx(whole, abs=1e-14), case
        assert sent == STEPS * sends(optimizer, order, sharding, processes), case


def test_a_round_sends_matrices_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """One exchange has one type; routers may be fp32 in a bf16 model."""
    rounds: list[list[torch.dtype]] = []

    def noted(pending: list[tuple[torch.Tensor, Any]], group: object) -> list[torch.Tensor]:
        rounds.append([matrix.dtype for matrix, _ in pending])
        return [matrix for matrix, _ in pending]

    monkeypatch.setattr(matrix_sharing, "_round", noted)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 3)
    bf16, fp32 = torch.bfloat16, torch.float32
    matrices = [torch.ones(2, 2, dtype=dtype) for dtype in (bf16, bf16, fp32, fp32, fp32, fp32)]
    group: Any = object()
    done = list(matrix_sharing.transformed(matrices, [torch.clone] * 6, process_group=group))
    assert rounds == [[bf16] * 2, [fp32] * 3, [fp32]]
    assert all(one is matrix for one, matrix in zip(done, matrices, strict=True))


@given(st.integers(1, 6), st.integers(0, 9), st.sampled_from(ORDERS), st.integers(1, 5))
def test_a_shard_fetches_the_copies_of_its_units_and_no_others(old: int, more: int, order: str, processes: int) -> None:
    axis = copy_map.axis(old, old + more, order="tiled" if order == "tiled" else "interleaved")
    bounds = shard_bounds(axis.new, processes)
    assert [unit for start, stop in bounds for unit in range(start, stop)] == list(range(axis.new))
    assert [stop - start for start, stop in bounds if stop > start] == [
        len(part) for part in torch.chunk(torch.arange(axis.new), processes)
    ]
    for start, stop in bounds:
        mine = set(axis.source[start:stop].tolist())
        expected = [i for i in range(axis.new) if not start <= i < stop and int(axis.source[i]) in mine]
        assert copies_elsewhere(axis, start, stop).tolist() == expected
