"""The maps of copies against loops over units."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclone.copies import Copies, axis, concatenate, of_dim, product

Sizes = dict[str, tuple[int, int]]
NAMES = ("a", "b", "c")


def by_hand(dim: tuple[tuple[str | int, ...], ...], sizes: Sizes) -> tuple[list[int], int]:
    """(the old unit of each new unit, number of old units), one unit at a time."""
    found, offset = [], 0
    for block in dim:
        pairs = [(atom, atom) if isinstance(atom, int) else sizes[atom] for atom in block]
        for new_index in itertools.product(*(range(new) for _, new in pairs)):
            flat = 0
            for index, (old, _) in zip(new_index, pairs, strict=True):
                flat = flat * old + index % old
            found.append(offset + flat)
        offset += math.prod(old for old, _ in pairs)
    return found, offset


def check(map_: Copies, source: list[int], old: int) -> None:
    """Everything a map says must follow from its sources."""
    assert map_.source.tolist() == source
    assert (map_.old, map_.new) == (old, len(source))
    assert map_.count.tolist() == [source.count(unit) for unit in source]
    assert map_.number.tolist() == [source[:place].count(unit) for place, unit in enumerate(source)]
    assert map_.grown == (len(source) > old)
    seen = []
    for c, units, places in map_.groups:
        assert places.shape == (c, units.numel())
        for k, unit in enumerate(units.tolist()):
            assert places[:, k].tolist() == [place for place, of in enumerate(source) if of == unit]
            assert source.count(unit) == c
            seen.append(unit)
    assert sorted(seen) == list(range(old))
    assert len({c for c, _, _ in map_.groups}) == len(map_.groups)


@st.composite
def dims_and_sizes(draw: st.DrawFn) -> tuple[tuple[tuple[str | int, ...], ...], Sizes]:
    sizes = {}
    for name in NAMES:
        old = draw(st.integers(1, 4))
        sizes[name] = (old, old + draw(st.integers(0, 7)))  # uneven counts more often than even ones
    atom = st.one_of(st.sampled_from(NAMES), st.integers(1, 3))
    block = st.lists(atom, min_size=1, max_size=3).map(tuple)
    return draw(st.lists(block, min_size=1, max_size=3).map(tuple)), sizes


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(0, 40))
def test_unit_i_of_an_axis_copies_unit_i_mod_d(old: int, more: int) -> None:
    check(axis(old, old + more), [i % old for i in range(old + more)], old)


@settings(deadline=None, max_examples=80)
@given(dims_and_sizes())
def test_a_stored_dimension_is_the_product_and_concatenation_of_its_axes(
    case: tuple[tuple[tuple[str | int, ...], ...], Sizes],
) -> None:
    dim, sizes = case
    source, old = by_hand(dim, sizes)
    if len(source) <= 600:  # the reference is quadratic
        check(of_dim(dim, sizes), source, old)


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
    joined = concatenate([axis(2, 4), axis(1, 2)])
    assert joined.source.tolist() == [0, 1, 0, 1, 2, 2]
    assert joined.number.tolist() == [0, 0, 1, 1, 0, 1]
    assert joined.old == 3


def test_an_axis_that_does_not_grow_is_the_identity() -> None:
    same = axis(5, 5)
    assert not same.grown
    assert [(c, u.tolist(), p.tolist()) for c, u, p in same.groups] == [(1, list(range(5)), [list(range(5))])]


def test_uneven_counts_are_grouped_by_count() -> None:
    groups = {c: (units.tolist(), places.tolist()) for c, units, places in axis(3, 5).groups}
    assert groups == {1: ([2], [[2]]), 2: ([0, 1], [[0, 1], [3, 4]])}


def test_an_axis_cannot_shrink() -> None:
    with pytest.raises(AssertionError):
        axis(4, 3)


def test_maps_are_whole_numbers() -> None:
    map_ = of_dim((("a", 2),), {"a": (2, 5)})
    assert {map_.source.dtype, map_.number.dtype, map_.count.dtype} == {torch.int64}
