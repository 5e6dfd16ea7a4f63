"""The draws against Philox written out in Python integers, and their statistics."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperclone.expansion.noise import draws, normal_quantiles
from tests.helpers.examples import examples

_64 = (1 << 64) - 1

PINNED_FIRST = [[-1182, 16226, 23035, 27685, -13426, -8127, -23635, 30847]]
PINNED_LATER = [[-32591, 20598, -18241], [-24131, 11329, 1292]]
PINNED_TABLE = [
    -4.324963092803955,
    -4.076247692108154,
    -0.5095551013946533,
    -1.9124250684399158e-05,
    1.9124250684399158e-05,
    4.324963092803955,
]


def philox4x64(counter: int, key: tuple[int, int]) -> list[int]:
    """One block of Philox4x64-10 (Salmon et al. 2011, section 3.3)."""
    words = [counter >> (64 * k) & _64 for k in range(4)]
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * words[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * words[2], 1 << 64)
        words = [high1 ^ words[1] ^ k0, low1, high0 ^ words[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _64, (k1 + 0xBB67AE8584CAA73B) & _64
    return words


def one_draw(seed: int, name: str, row: int, column: int, columns: int) -> int:
    """The draw at one position, with nothing else computed."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    blocks = (columns + 15) // 16
    words = philox4x64(row * blocks + column // 16 + 1, key)
    value = words[column % 16 // 4] >> (16 * (column % 4)) & 0xFFFF
    return value - 65536 if value >= 32768 else value


def test_philox_reference_agrees_with_the_published_known_answers() -> None:
    assert philox4x64(0, (0, 0)) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@examples(60)
@given(
    seed=st.integers(0, 2**63),
    name=st.text(max_size=20),
    row=st.integers(0, 10**9),
    columns=st.integers(1, 100),
    data=st.data(),
)
def test_a_draw_is_a_pure_function_of_seed_name_row_and_column(
    seed: int, name: str, row: int, columns: int, data: st.DataObject
) -> None:
    column = data.draw(st.integers(0, columns - 1))
    found = draws(seed, name, rows=range(row, row + 2), columns=columns)
    assert found.shape == (2, columns)
    assert found.dtype == torch.int16
    assert found[0, column].item() == one_draw(seed, name, row, column, columns)
    assert found[1, column].item() == one_draw(seed, name, row + 1, column, columns)


def test_the_stream_never_changes() -> None:
    # A change here changes the bytes of every grown checkpoint: it must be a decision, not an accident.
    assert draws(0, "model.norm.weight", rows=range(1), columns=8).tolist() == PINNED_FIRST
    assert draws(7, "lm_head.weight", rows=range(1000, 1002), columns=17)[:, [0, 15, 16]].tolist() == PINNED_LATER


@examples(50)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    start=st.integers(0, 1000),
)
def test_the_numbers_do_not_depend_on_how_rows_are_cut(rows: int, columns: int, cuts: list[int], start: int) -> None:
    whole = draws(3, "tensor", rows=range(start, start + rows), columns=columns)
    edges = sorted({0, rows, *(cut for cut in cuts if cut <= rows)})
    pieces = [
        draws(3, "tensor", rows=range(start + a, start + b), columns=columns) for a, b in itertools.pairwise(edges)
    ]
    assert torch.equal(torch.cat(pieces), whole)


def test_no_rows_give_no_draws() -> None:
    assert draws(0, "x", rows=range(5, 5), columns=20).shape == (0, 20)


def test_other_names_and_other_seeds_give_other_numbers() -> None:
    keys = [(seed, name) for seed in (0, 1, 2, 11, 2**40) for name in ("a", "b", "a.weight", "1:a", "")]
    found = {tuple(draws(*key, rows=range(1), columns=16).flatten().tolist()) for key in keys}
    assert len(found) == len(keys)


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return draws(5, "statistics", rows=range(1024), columns=1024).numpy()


def test_draws_are_uniform_over_16_bits(sample: np.ndarray) -> None:
    assert sample.min() == -32768
    assert sample.max() == 32767
    values = sample.astype(np.int64).ravel() + 32768
    for bins in (values >> 8, values & 255):
        count = np.bincount(bins, minlength=256)
        expected = values.size / 256
        chi_square = float(((count - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("lag", [(0, 1), (0, 2), (0, 4), (0, 16), (1, 0), (1, 1), (2, 0), (512, 0), (0, 512)])
def test_rows_and_columns_are_not_correlated(sample: np.ndarray, lag: tuple[int, int]) -> None:
    values = sample.astype(np.float64)
    down, right = lag
    a, b = values[: 1024 - down, : 1024 - right].ravel(), values[down:, right:].ravel()
    assert abs(float(np.corrcoef(a, b)[0, 1])) < 5 / math.sqrt(a.size)


def test_the_quantile_table_is_standard_normal() -> None:
    table = normal_quantiles()
    assert table.shape == (65536,)
    assert table.dtype == torch.float32
    values = table.double()
    assert values.mean().abs().item() < 1e-9
    assert values.square().mean().item() == pytest.approx(1, abs=1e-7)
    assert bool((values.diff() > 0).all())
    assert torch.equal(table, -table.flip(0))
    assert 4.32 < values.max().item() < 4.33
    for index in range(0, 65536, 257):
        below = (1 + math.erf(values[index].item() / math.sqrt(2))) / 2
        assert below == pytest.approx((index + 0.5) / 65536, abs=1e-4)


def test_the_quantile_table_never_changes() -> None:
    table = normal_quantiles()
    assert [table[k].item() for k in (0, 1, 20000, 32767, 32768, 65535)] == PINNED_TABLE
