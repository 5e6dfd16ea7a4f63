"""The maps of copies against loops over units."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperclone.architectures.layout import Dim, Factor, Query
from hyperclone.expansion.copy_map import CopyMap, axis, concatenate, of_dim, product
from hyperclone.planning.recipe import OrderName
from tests.helpers.examples import examples

Sizes = dict[str, tuple[int, int]]
NAMES = ("a", "b", "c")


ORDERS: tuple[OrderName, ...] = ("tiled", "interleaved")


def units(factor: Factor, sizes: Sizes, order: OrderName) -> tuple[list[int], int]:
    """(the old unit of each new unit, number of old units), one unit at a time."""
    assert not isinstance(factor, Query)  # none is generated here
    if not isinstance(factor, tuple):
        old, new = (factor, factor) if isinstance(factor, int) else sizes[factor]
        return [i % old if order == "tiled" else math.floor(Fraction(i * old, new)) for i in range(new)], old
    found, offset = [], 0
    for block in factor:
        parts = [units(inner, sizes, order) for inner in block]
        for positions in itertools.product(*(source for source, _ in parts)):
            flat = 0
            for position, (_, old) in zip(positions, parts, strict=True):
                flat = flat * old + position
            found.append(offset + flat)
        offset += math.prod(old for _, old in parts)
    return found, offset


def check(map_: CopyMap, source: list[int], old: int) -> None:
    """Everything a map says must follow from its sources."""
    assert map_.source.tolist() == source
    assert (map_.old, map_.new) == (old, len(source))
    assert map_.count.tolist() == [source.count(unit) for unit in source]
    assert map_.number.tolist() == [source[:position].count(unit) for position, unit in enumerate(source)]
    assert map_.grown == (len(source) > old)
    seen = []
    for c, units, positions in map_.groups:
        assert positions.shape == (c, units.numel())
        for k, unit in enumerate(units.tolist()):
            assert positions[:, k].tolist() == [position for position, of in enumerate(source) if of == unit]
            assert source.count(unit) == c
            seen.append(unit)
    assert sorted(seen) == list(range(old))
    assert len({c for c, _, _ in map_.groups}) == len(map_.groups)


def parts(factor: st.SearchStrategy[Factor], blocks: int, factors: int) -> st.SearchStrategy[Dim]:
    block = st.lists(factor, min_size=1, max_size=factors).map(tuple)
    return st.lists(block, min_size=1, max_size=blocks).map(tuple)


@st.composite
def dims_and_sizes(draw: st.DrawFn) -> tuple[Dim, Sizes]:
    sizes = {}
    for name in NAMES:
        old = draw(st.integers(1, 4))
        sizes[name] = (old, old + draw(st.integers(0, 7)))  # uneven counts more often than even ones
    atom = st.one_of(st.sampled_from(NAMES), st.integers(1, 3))
    factor = st.recursive(atom, lambda inner: parts(inner, 2, 2), max_leaves=4)  # parts of parts, at any depth
    return draw(parts(factor, 3, 3)), sizes


@examples(60)
@given(st.integers(1, 12), st.integers(0, 40))
def test_unit_i_of_an_axis_copies_unit_i_mod_d_or_the_copies_stand_side_by_side(old: int, more: int) -> None:
    new = old + more
    check(axis(old, new), [i % old for i in range(new)], old)
    side_by_side = [math.floor(Fraction(i * old, new)) for i in range(new)]
    check(axis(old, new, order="interleaved"), side_by_side, old)
    assert side_by_side == sorted(side_by_side)
    assert max(map(side_by_side.count, range(old))) - min(map(side_by_side.count, range(old))) <= 1


@examples(60)
@given(st.integers(1, 12), st.integers(0, 40))
def test_with_padding_all_units_have_as_many_copies_and_padding_stands_behind(old: int, more: int) -> None:
    new, count = old + more, (old + more) // old
    side_by_side = [i // count for i in range(count * old)]
    expected: dict[OrderName, list[int]] = {"tiled": [*range(old)] * count, "interleaved": side_by_side}
    for order, sources in expected.items():
        found = axis(old, new, padded=True, order=order)
        copied = slice(count * old)
        check(CopyMap(found.source[copied], found.number[copied], found.count[copied], found.part[copied], old),
              sources, old)  # fmt: skip
        assert found.padding.tolist() == list(range(count * old, new))
        assert 0 <= int(found.source.min()) <= int(found.source.max()) < old


def test_the_channels_of_a_head_are_tiled_in_any_order() -> None:
    """The factors of queries (query_rows.py) count on it."""
    dim: Dim = (("heads", "head_dim"),)
    found = of_dim(dim, {"heads": (2, 4), "head_dim": (2, 4)}, order="interleaved")
    assert found.source.tolist() == [0, 1, 0, 1] * 2 + [2, 3, 2, 3] * 2


@examples(120)
@given(dims_and_sizes(), st.sampled_from(ORDERS))
def test_a_stored_dimension_is_the_product_and_concatenation_of_its_axes(
    case: tuple[Dim, Sizes], order: OrderName
) -> None:
    dim, sizes = case
    source, old = units(dim, sizes, order)
    if len(source) <= 600:  # the reference is quadratic
        check(of_dim(dim, sizes, order=order), source, old)


def test_product_is_in_c_order() -> None:
    # 2 heads -> 4, head_dim 3 stays: whole heads are copied.
    assert product([axis(2, 4), axis(3, 3)]).source.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    # 2 stays, 2 -> 4: copies inside each outer unit.
    inside = product([axis(2, 2), axis(2, 4)])
    assert inside.source.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert inside.number.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    # Both grow: counts multiply and numbers nest.
    both = product([axis(1, 2), axis(1, 3)])
    assert both.number.tolist() == [0, 1, 2, 3, 4, 5]
    assert both.count.tolist() == [6] * 6


def test_parts_lie_end_to_end() -> None:
    whole = concatenate([axis(2, 4), axis(1, 2)])
    assert whole.source.tolist() == [0, 1, 0, 1, 2, 2]
    assert whole.number.tolist() == [0, 0, 1, 1, 0, 1]
    assert whole.old == 3


def test_parts_inside_a_product_stay_with_their_outer_unit() -> None:
    # Falcon's "(kv_heads (group + 2))": each key-value head stores its queries, its key and its value.
    fused: Dim = (("kv_heads", (("group",), (2,))),)
    heads = of_dim(fused, {"kv_heads": (2, 4), "group": (1, 1)})
    assert heads.source.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    queries = of_dim(fused, {"kv_heads": (2, 2), "group": (1, 3)})
    assert queries.source.tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 4, 5]
    assert queries.count.tolist() == [3, 3, 3, 1, 1, 3, 3, 3, 1, 1]
    both = of_dim(fused, {"kv_heads": (1, 2), "group": (1, 2)})
    assert both.source.tolist() == [0, 0, 1, 2, 0, 0, 1, 2]
    assert both.number.tolist() == [0, 1, 0, 0, 2, 3, 1, 1]


def test_an_axis_that_does_not_grow_is_the_identity() -> None:
    same = axis(5, 5)
    assert not same.grown
    assert [(c, u.tolist(), p.tolist()) for c, u, p in same.groups] == [(1, list(range(5)), [list(range(5))])]


def test_uneven_counts_are_grouped_by_count() -> None:
    groups = {c: (units.tolist(), positions.tolist()) for c, units, positions in axis(3, 5).groups}
    assert groups == {1: ([2], [[2]]), 2: ([0, 1], [[0, 1], [3, 4]])}


def test_an_axis_cannot_shrink_or_be_empty() -> None:
    for old, new in ((4, 3), (0, 3)):
        with pytest.raises(AssertionError):
            axis(old, new)


@pytest.mark.parametrize("dim", [("a",), ((("a",),),), (Query((("a",),)),)], ids=["axis", "parts", "query"])
def test_padding_is_padding_wherever_its_axis_stands(dim: tuple[Factor, ...]) -> None:
    found = of_dim((("b", *dim),), {"a": (2, 5), "b": (1, 2)}, {"a"})
    assert found.source.tolist() == [0, 1, 0, 1, 0] * 2
    assert found.count.tolist() == [4, 4, 4, 4, 0] * 2
    assert found.padding.tolist() == [4, 9]


def test_maps_are_whole_numbers() -> None:
    map_ = of_dim((("a", 2),), {"a": (2, 5)})
    assert {map_.source.dtype, map_.number.dtype, map_.count.dtype} == {torch.int64}
