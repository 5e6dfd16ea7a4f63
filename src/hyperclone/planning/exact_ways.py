"""Growths near a request that need no rounding: which ones there are, and why the request needs it.

A factor is a power of two, which keeps all bits, or it rounds. Square roots of sizes' ratios are factors in three
places: where the model multiplies its embedding by the root of the hidden size, where padding channels are hidden from
norms (any_width.py), and where head_dim grows (head_scaling.py). Each is a power of two only for some factors of that
size, so other factors are tried, and only what was tried is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.planning import head_scaling
from hyperclone.planning.any_width import PaddedAxis
from hyperclone.planning.growth import LARGEST_FACTOR, Growth

_AXES = ("hidden", head_scaling.AXIS)
_POWERS_OF_FOUR = tuple(4**power for power in range(4))  # their roots are powers of two


def exact_ways(
    growth: Growth, sizes: Mapping[str, tuple[int, int]], is_exact: Callable[[Growth], bool]
) -> tuple[Growth, ...]:
    """The growths nearest to a request that need no rounding, those first that change least.

    In each the hidden size, head_dim, both, or all of the width has another factor: 1, or the nearest one on either
    side that is exact, of whole numbers and powers of four.

    Args:
        growth: the request, which needs it.
        sizes: (old, new) of every axis in it.
        is_exact: whether a growth can be carried out without rounding.
    """
    ways: dict[Growth, None] = {}
    for other, fields, asked in _changes(growth, sizes):
        for factors in ((1,), _below(asked), _above(asked)) if other == growth else (_above(asked, itself=True),):
            each = (replace(other, **dict.fromkeys(fields, f"{factor}x"))  # type: ignore[arg-type]
                    for factor in factors if ("width" in fields) < factor <= LARGEST_FACTOR)  # fmt: skip
            if (way := next(filter(is_exact, each), None)) is not None:
                ways[way] = None
    return tuple(ways)


def _changes(
    growth: Growth, sizes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[Growth, tuple[str, ...], Fraction]]:
    """(the request or one like it, its fields that may have another factor together, the factor that was asked for)."""
    asked = {axis: Fraction(new, old) for axis in _AXES for old, new in [sizes[axis]] if old != new}
    yield from ((growth, (axis,), factor) for axis, factor in asked.items())
    by_width = growth.width is not None and growth.hidden is None
    if len(asked) > 1:
        yield growth, tuple(asked), max(asked.values())
        # Of more heads, instead of larger ones.
        more = replace(growth, head_dim=None)
        yield more, ("width",) if by_width else ("hidden", "heads"), asked["hidden"]
    elif by_width and "hidden" in asked:
        yield growth, ("width",), asked["hidden"]


def _below(asked: Fraction) -> list[int]:
    """Whole factors below one, the nearest first."""
    whole = math.ceil(asked) - 1
    return [whole, *(power for power in reversed(_POWERS_OF_FOUR) if power < whole)]


def _above(asked: Fraction, *, itself: bool = False) -> list[int]:
    """Whole factors above one, the nearest first; or that one as well, where it is whole."""
    whole = math.ceil(asked) if itself else math.floor(asked) + 1
    return [whole, *(power for power in _POWERS_OF_FOUR if power > whole)]


def reasons(
    family: Family, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], padded: Mapping[str, PaddedAxis]
) -> tuple[str, ...]:
    """Why weights are multiplied by roots: clauses that complete "..., since".

    Args:
        family, config: of the source.
        sizes: (old, new) of every axis.
        padded: the axes with padding channels.
    """
    found = roots(family, config, sizes)
    if (hidden := padded.get("hidden")) is None:
        return found
    old, new = sizes["hidden"]
    shared = "" if hidden.eps else ", whose eps cannot follow (it is fixed, or other norms share it)"
    return (
        *found,
        f"{new} is no multiple of the hidden size {old}, so that padding channels have to be hidden from the norms"
        f"{shared}; whole multiples have none",
    )


def roots(family: Family, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """The same, without the reason that padding channels are."""
    found = []
    if any(family.squared_factor(name, config, sizes) != 1 for name in family.multiplied):
        found.append(
            "the model multiplies its embedding by the square root of the hidden size, which is divided out: a root is "
            "a power of two only where the hidden size grows 1x, 4x or 16x"
        )
    if len(set(sizes[head_scaling.AXIS])) > 1:
        found.append(
            "queries are multiplied by a root where head_dim grows, which is a power of two only for 1x, 4x or 16x"
        )
    return tuple(found)
