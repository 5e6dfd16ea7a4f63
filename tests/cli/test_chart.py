"""Curves in a terminal: every curve is in the frame, where its numbers say."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hyperclone.cli.display.chart import Line, chart
from tests.helpers.examples import examples

points = st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=0, max_size=12)


def rows_of(lines: list[Line], *, width: int = 60, height: int = 12, **options: float) -> list[str]:
    return chart(lines, width=width, height=height, x=(0, 11), label="tokens", **options).plain.split("\n")


def dots(rows: list[str]) -> list[tuple[int, int]]:
    """(column, row) of every dot of the frame, by Unicode's table of braille patterns."""
    order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]
    found = []
    for row, text in enumerate(rows):
        for column, letter in enumerate(text.partition("│")[2]):
            bits = ord(letter) - 0x2800
            if 0 <= bits < 256:
                found += [(2 * column + dx, 4 * row + dy) for bit, (dx, dy) in enumerate(order) if bits >> bit & 1]
    return found


@examples(60)
@given(points, points, st.integers(24, 100), st.integers(4, 24))
def test_a_chart_always_fits_its_frame(a: list[float], b: list[float], width: int, height: int) -> None:
    lines = [Line("one", "red", list(range(len(a))), a), Line("other", "blue", list(range(len(b))), b)]
    rows = rows_of(lines, width=width, height=height)
    assert len(rows) == height
    assert all(len(row) <= width + 8 for row in rows)  # names of the curves may need a little more


@examples(60)
@given(st.lists(st.floats(0, 5), min_size=2, max_size=12, unique=True))
def test_a_falling_curve_falls_from_left_to_right(loss: list[float]) -> None:
    falling = sorted(loss, reverse=True)
    found = dots(rows_of([Line("a", "red", list(range(len(loss))), falling)]))
    highest = {column: min(row for c, row in found if c == column) for column, _ in found}
    columns = sorted(highest)
    assert all(highest[a] <= highest[b] for a, b in pairwise(columns))


def test_the_corners_are_the_extremes() -> None:
    rows = rows_of([Line("a", "red", [0, 11], [3.0, 1.0])])
    assert rows[0].startswith("3.00")
    assert rows[-3].startswith("1.00")
    found = dots(rows)
    assert (0, 0) in found
    assert max(row for _, row in found) == 4 * 10 - 1


def test_equal_values_one_point_and_none_give_a_chart() -> None:
    assert dots(rows_of([Line("a", "red", [0, 5, 11], [2.0, 2.0, 2.0])]))
    assert dots(rows_of([Line("a", "red", [5], [2.0])]))
    assert not dots(rows_of([Line("a", "red", [], [])]))


def test_what_is_above_the_top_is_cut_off_and_the_rest_stays_where_it_was() -> None:
    lines = [Line("high", "red", [0, 11], [90.0, 2.0]), Line("low", "blue", [0, 11], [3.0, 1.0])]
    rows = rows_of(lines, top=4.0)
    assert rows[0].startswith("4.00")
    assert "high" in "\n".join(rows)
    assert "low" in "\n".join(rows)


def test_small_differences_do_not_fill_a_frame_that_has_a_least_height() -> None:
    rows = rows_of([Line("a", "red", [0, 11], [3.01, 3.00])], least=1.0)
    top, bottom = float(rows[0].split()[0]), float(rows[-3].split()[0])
    assert top - bottom == 1.0
    found = dots(rows)
    assert max(row for _, row in found) - min(row for _, row in found) <= 1  # a hundredth of 40 dots
