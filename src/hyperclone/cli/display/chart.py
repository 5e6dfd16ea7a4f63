"""Curves in a terminal, in braille dots.

A character is two dots across and four down, so that a window of text is enough to see which curve is below which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

from hyperclone.units import short_count

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode's bits, by row and column
_BLANK = 0x2800


@dataclass(frozen=True)
class Line:
    """One curve: its name, a color of rich, and its points (x ascending)."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]


def chart(
    lines: Sequence[Line],
    *,
    width: int,
    height: int,
    x: tuple[float, float],
    label: str,
    top: float | None = None,
    least: float = 0.0,
) -> Text:
    """Curves in a frame with numbers at its corners and names at the ends of the curves.

    Args:
        lines: the curves; points that are not finite are left out.
        width, height: in characters, names and numbers included.
        x: first and last place of the frame.
        label: of the horizontal axis.
        top: highest value shown; what is above it is cut off.
        least: of the frame's height in values, so that small differences do not look large.

    Returns:
        `height` rows; empty frames for curves without points.
    """
    points = [
        [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(b) and x[0] <= a <= x[1]]
        for line in lines
    ]
    values = [value for one in points for _, value in one]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if top is not None and values:
        high = max(min(high, top), low)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    names = max([len(line.name) for line in lines], default=0) + 1
    left = max(len(f"{high:.2f}"), len(f"{low:.2f}")) + 1
    columns, rows = max(4, width - left - names - 1), max(2, height - 2)
    cells = [[_BLANK] * columns for _ in range(rows)]
    colors: list[list[str]] = [[""] * columns for _ in range(rows)]

    def place(at: float, value: float) -> tuple[int, int]:
        across = (at - x[0]) / (x[1] - x[0] or 1) * (columns * 2 - 1)
        down = (high - value) / (high - low) * (rows * 4 - 1)
        return round(across), round(down)

    ends: dict[int, Text] = {}
    for line, one in zip(lines, points, strict=True):
        for column, row in _path([place(a, b) for a, b in one]):
            if 0 <= row < rows * 4:
                cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
                colors[row // 4][column // 2] = line.color
        if one:
            row = min(max(place(*one[-1])[1] // 4, 0), rows - 1)
            while row in ends and row + 1 < rows:
                row += 1
            while row in ends and row > 0:
                row -= 1
            ends[row] = Text(f" {line.name}", style=line.color)
    drawn = Text()
    for row in range(rows):
        number = f"{high:.2f}" if row == 0 else f"{low:.2f}" if row == rows - 1 else ""
        drawn.append(f"{number:>{left - 1}} ", style="dim").append("│", style="dim")
        for column in range(columns):
            drawn.append(chr(cells[row][column]), style=colors[row][column] or None)
        drawn.append(ends.get(row, Text())).append("\n")
    first, last = short_count(x[0]), f"{short_count(x[1])} {label}"
    drawn.append(" " * left + "└" + "─" * columns + "\n", style="dim")
    drawn.append(" " * (left + 1) + first + last.rjust(columns - len(first)), style="dim")
    return drawn


def _path(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every dot on the way from point to point."""
    if len(places) == 1:
        return list(places)
    dots: list[tuple[int, int]] = []
    for (x0, y0), (x1, y1) in pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots += [(round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)) for i in range(steps + 1)]
    return dots
