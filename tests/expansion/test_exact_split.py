"""The exact split against integer and rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from hyperclone.expansion.exact_split import (
    arithmetic_type,
    join,
    join_wide,
    precision,
    split_by_shares,
    split_evenly,
    unit_in_last_place,
)
from tests.helpers.examples import examples

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
# (bits of the significand with the hidden one, smallest normal exponent) by IEEE 754 and the definition of bfloat16
FORMATS = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126), torch.float64: (53, -1022)}
SEEDS = st.integers(0, 2**32 - 1)
MANY = st.one_of(st.integers(2, 9), st.sampled_from([16, 33, 64]))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(INTEGERS[tensor.dtype])


def every_16_bit_value(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a 16-bit type: both zeros, all subnormals, the largest."""
    values = torch.arange(-32768, 32768).to(torch.int16).view(dtype)
    return values[values.isfinite()]


def random_bit_patterns(dtype: torch.dtype, seed: int, count: int) -> Tensor:
    """Finite numbers whose bits are uniform, so that every exponent occurs, with the edges of the type in front."""
    size = 4 if dtype == torch.float32 else 8
    raw = np.random.default_rng(seed).bytes(count * size)
    values = torch.from_numpy(np.frombuffer(raw, dtype=f"<i{size}").copy()).view(dtype)
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    edges = [0.0, -0.0, info.max, info.min, least, -least, info.smallest_normal, info.smallest_normal - least, 1.0]
    return torch.cat([torch.tensor(edges, dtype=dtype), values[values.isfinite()]])


def values_of(dtype: torch.dtype, seed: int, count: int = 4000) -> Tensor:
    if dtype in (torch.bfloat16, torch.float16):
        return every_16_bit_value(dtype)
    return random_bit_patterns(dtype, seed, count)


def unit_of(value: float, dtype: torch.dtype) -> Fraction:
    """The spacing of a type at a value, from the definition of the format."""
    significand, smallest = FORMATS[dtype]
    exponent = math.frexp(value)[1] - 1 if value else smallest
    return Fraction(2) ** (max(exponent, smallest) - significand + 1)


def exactly_sums(parts: Sequence[Tensor], weight: Tensor) -> bool:
    """Whether parts add up to the weight as real numbers, in bulk."""
    if weight.dtype != torch.float64:
        # Multiples of one unit, far fewer than 2^53 of them: fp64 adds them without rounding.
        total = sum((part.to(torch.float64) for part in parts), torch.zeros(weight.shape, dtype=torch.float64))
        return bool((total == weight.to(torch.float64)).all())
    rows = torch.stack([-weight, *parts], dim=-1)
    large = weight.abs() > 1e290  # the sum of some parts may exceed the range: scale, which is exact up here
    rows = torch.where(large[..., None], rows * 2.0**-20, rows)
    return all(math.fsum(row) == 0.0 for row in rows.flatten(0, -2).tolist())  # fsum rounds the true sum once


def check_split(weight: Tensor, parts: Sequence[Tensor], count: int) -> None:
    """Everything the module promises of any split."""
    assert len(parts) == count
    for part in parts:
        assert part.dtype == weight.dtype
        assert part.shape == weight.shape
        assert bool(part.isfinite().all())
    assert exactly_sums(parts, weight)
    assert torch.equal(bits(join(parts)), bits(weight))
    wide = join_wide(parts)
    assert wide.dtype == (torch.float32 if weight.element_size() == 2 else torch.float64)
    assert torch.equal(wide.to(torch.float64), weight.to(torch.float64))
    assert torch.equal(wide.signbit(), weight.signbit())
    for index in range(0, weight.numel(), max(1, weight.numel() // 25)):
        exact = sum(Fraction(part.flatten()[index].item()) for part in parts)
        assert exact == Fraction(weight.flatten()[index].item())


def noisy_shares(weight: Tensor, count: int, snr_db: float, seed: int, *, own: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    level = 10 ** (-snr_db / 20)
    kind = arithmetic_type(weight.dtype)
    base = [float(b == 0) if own else 1 / count for b in range(count)]
    return [torch.randn(weight.shape, generator=generator, dtype=kind) * level + b for b in base]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_unit_in_the_last_place_is_the_spacing_of_the_type(dtype: torch.dtype) -> None:
    values = values_of(dtype, 1)[::7]
    units = unit_in_last_place(values.to(arithmetic_type(dtype)), dtype)
    assert precision(dtype) == FORMATS[dtype][0]
    for value, unit in zip(values.tolist(), units.tolist(), strict=True):
        assert Fraction(unit) == unit_of(value, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@examples(12)
@given(count=MANY, snr_db=st.floats(-40, 80), seed=SEEDS, own=st.booleans())
@example(count=2, snr_db=-40.0, seed=0, own=False)
@example(count=9, snr_db=-40.0, seed=0, own=True)
@example(count=3, snr_db=10.0, seed=0, own=True)
def test_noisy_parts_sum_to_every_value_bit_for_bit(
    dtype: torch.dtype, count: int, snr_db: float, seed: int, own: bool
) -> None:
    weight = values_of(dtype, seed, 1500)
    check_split(weight, split_by_shares(weight, noisy_shares(weight, count, snr_db, seed, own=own)[:-1]), count)


@pytest.mark.parametrize("dtype", TYPES)
@examples(15)
@given(shares=st.lists(st.floats(-(2.0**116), 2.0**116), min_size=2, max_size=9), seed=SEEDS)
@example(shares=[1e35, -1e35, 1e35, 0.0], seed=0)
@example(shares=[-1.0, 1.0, 1.0], seed=0)
@example(shares=[0.0, 0.0, 0.0, 1.0], seed=0)
@example(shares=[1.9] * 9, seed=0)
def test_parts_of_any_shares_at_all_sum_to_every_value_bit_for_bit(
    dtype: torch.dtype, shares: list[float], seed: int
) -> None:
    weight = values_of(dtype, seed, 1000)
    check_split(weight, split_by_shares(weight, shares[:-1]), len(shares))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 100])
def test_even_parts_sum_to_every_value_bit_for_bit(dtype: torch.dtype, count: int) -> None:
    weight = values_of(dtype, count, 600)
    check_split(weight, split_evenly(weight, count), count)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8])
def test_even_parts_differ_by_at_most_one_unit_and_not_at_all_where_the_type_allows(
    dtype: torch.dtype, count: int
) -> None:
    weight = values_of(dtype, count)[::53]
    parts = [part.tolist() for part in split_evenly(weight, count)]
    significand, smallest = FORMATS[dtype]
    for index, value in enumerate(weight.tolist()):
        got = [Fraction(part[index]) for part in parts]
        exact, unit = Fraction(value) / count, unit_of(value, dtype)
        assert max(got) - min(got) <= unit
        least = Fraction(2) ** (smallest - significand + 1)
        if count & (count - 1) == 0 and (exact / least).denominator == 1:
            assert got == [exact] * count  # W/c is a number of the type
        else:
            assert all(abs(part - exact) < unit for part in got)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_parts_are_the_shares_asked_for_rounded_to_one_unit(dtype: torch.dtype, count: int) -> None:
    weight = values_of(dtype, 3)[::31]
    generator = torch.Generator().manual_seed(count)
    raw = torch.rand(count, weight.numel(), generator=generator, dtype=arithmetic_type(dtype)) + 0.1
    shares = list(raw / raw.sum(0))
    parts = split_by_shares(weight, shares[:-1])
    for index, value in enumerate(weight.tolist()):
        unit = unit_of(value, dtype)
        for part, share in zip(parts[:-1], shares[:-1], strict=True):
            wanted = Fraction(value) * Fraction(share[index].item())
            # Half a unit for rounding the integer; the product before it rounds as much where nothing wider computes.
            close = Fraction(51, 100) if dtype in (torch.bfloat16, torch.float16) else 1
            assert abs(Fraction(part[index].item()) - wanted) <= unit * close
        # Nobody reads the last share: it is what remains, so the errors of the others add up in it.
        wanted = Fraction(value) * Fraction(shares[-1][index].item())
        assert abs(Fraction(parts[-1][index].item()) - wanted) <= unit * (count + 1)


def test_shares_beyond_the_range_of_the_type_are_clipped_as_far_as_the_remainder_needs() -> None:
    weight = torch.tensor([255.0, 128.0, -255.0], dtype=torch.bfloat16)
    first, second = split_by_shares(weight, [-1000.0])
    assert first.tolist() == [1.0, -126.0, -1.0]
    assert second.tolist() == [254.0, 254.0, -254.0]
    largest = torch.tensor([torch.finfo(torch.bfloat16).max], dtype=torch.bfloat16)
    assert split_by_shares(largest, [5.0])[0].tolist() == largest.tolist()


def test_negative_zero_splits_into_negative_zeros() -> None:
    for dtype in TYPES:
        weight = torch.tensor([-0.0, 0.0, 1.0], dtype=dtype)
        for parts in (split_evenly(weight, 3), split_by_shares(weight, [-0.5, 0.7]), split_evenly(weight, 2)):
            for part in parts:
                assert part[:2].tolist() == [0.0, 0.0]
                assert part[:2].signbit().tolist() == [True, False]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_weight_is_not_written_to_and_need_not_be_contiguous(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weight.clone()
    view = weight.T[::2]
    check_split(view, split_by_shares(view, noisy_shares(view, 3, 0.0, 1)[:-1]), 3)
    check_split(view, split_evenly(view, 3), 3)
    check_split(view, split_evenly(view, 4), 4)
    assert torch.equal(bits(weight), bits(before))


@pytest.mark.parametrize("dtype", TYPES[:3])
def test_a_sum_that_only_rounds_to_the_source_is_seen_one_type_wider(dtype: torch.dtype) -> None:
    tiny = 2.0 ** -(precision(dtype) + 3)
    parts = [torch.tensor([1.0], dtype=dtype), torch.tensor([tiny], dtype=dtype)]
    assert join(parts).item() == 1.0
    assert join_wide(parts).item() == 1.0 + tiny


@examples(200)
@given(st.lists(st.integers(-(2**52), 2**52), min_size=2, max_size=9), st.integers(-1000, 900))
def test_fp64_parts_that_cancel_are_collapsed_without_rounding(integers: list[int], exponent: int) -> None:
    # The remainder brings the whole back to one number however large the partial sums were.
    integers = [*integers, *(-k for k in integers[1:])]
    parts = [torch.tensor([math.ldexp(k, exponent)], dtype=torch.float64) for k in integers]
    assert join(parts).item() == math.ldexp(integers[0], exponent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_partial_sums_may_exceed_the_range_of_the_type(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    parts = [torch.tensor([value, 1.0], dtype=dtype) for value in (largest, largest, -largest, -largest / 2)]
    assert join(parts).tolist() == [largest / 2, 4.0]


def test_what_is_not_finite_stays_visible_when_collapsed() -> None:
    for dtype in TYPES:
        parts = [torch.tensor([math.inf, math.nan, 1.0], dtype=dtype), torch.tensor([1.0, 1.0, 1.0], dtype=dtype)]
        assert join(parts).isfinite().tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_the_shorter_way_without_clipping_splits_every_value(dtype: torch.dtype, count: int) -> None:
    """Also the largest: from 2^100 on, the anchor of the shorter way would not be a number of fp32."""
    values = every_16_bit_value(dtype)
    exponents = values.float().abs().log2().floor().nan_to_num(neginf=0)
    for exponent in sorted({*exponents.tolist()}):  # alone, since the largest of a block decides the way
        chosen = values[exponents == exponent]
        shares = [torch.full_like(chosen, (1 + 0.01 * i) / count, dtype=torch.float32) for i in range(count - 1)]
        plain, quick = split_by_shares(chosen, shares), split_by_shares(chosen, shares, within=True)
        assert {part.dtype for part in quick} == {dtype}
        assert torch.equal(bits(join(quick)), bits(chosen))
        unit = unit_in_last_place(chosen.to(arithmetic_type(dtype)), dtype)
        for one, other in zip(plain[:-1], quick[:-1], strict=True):  # products are rounded differently, so ties are
            assert bool(((one.double() - other.double()).abs() <= unit.double()).all())
