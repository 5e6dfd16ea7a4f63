"""What all figures share: an arm's colour and stroke, curves over seeds, tables of the numbers that were drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hyperclone.report.canvas import COLOURS
from hyperclone.report.load import Results
from hyperclone.study.speedup import Curve

CONTROL = "#7F7F7F"
_STROKES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.5, 1, 1.5)))


def colour(results: Results, arm: str) -> str:
    """An arm's colour, the same in all figures; the control is grey."""
    return CONTROL if arm == results.control else COLOURS[_place(results, arm) % len(COLOURS)]


def stroke(results: Results, arm: str) -> Any:
    """An arm's kind of line: broken where its colour is used for the second or third time."""
    return "-" if arm == results.control else _STROKES[_place(results, arm) // len(COLOURS) % len(_STROKES)]


def _place(results: Results, arm: str) -> int:
    return [name for name in results.arms if name != results.control].index(arm)


def mean_over_seeds(curves: Sequence[Curve], cost: str, values: Callable[[Curve], Sequence[float | None]]) -> tuple[
    list[float], list[float], list[float], list[float]
]:  # fmt: skip
    """(places, means, lowest, highest) at the evaluations that all seeds have."""
    common = sorted(set.intersection(*({*curve.step} for curve in curves)))
    places, means, lows, highs = [], [], [], []
    for step in common:
        at = [(curve, curve.step.index(step)) for curve in curves]
        found = [value for curve, i in at if (value := values(curve)[i]) is not None]
        if found:
            places.append(statistics.mean(getattr(curve, cost)[i] for curve, i in at))
            means.append(statistics.mean(found))
            lows.append(min(found))
            highs.append(max(found))
    return places, means, lows, highs


def table(
    rows: Iterable[tuple[str, Sequence[float], Sequence[float]]], head: list[str]
) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of curves: arm, place and value of each point."""
    return head, [[arm, f"{x:.6g}", f"{y:.4f}"] for arm, xs, ys in rows for x, y in zip(xs, ys, strict=True)]
