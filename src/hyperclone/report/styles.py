"""What all figures share: an arm's color and stroke, curves over seeds, tables of the numbers in them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hyperclone.report.load import Results
from hyperclone.report.palette import COLORS, CONTROL
from hyperclone.study.speedup import Curve

_STROKES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.5, 1, 1.5)))


def color(results: Results, arm: str) -> str:
    """An arm's color, the same in all figures and for its branches; the control is gray."""
    trunk = _trunk(results, arm)
    return CONTROL if trunk == results.control else COLORS[_position(results, trunk) % len(COLORS)]


def stroke(results: Results, arm: str) -> Any:
    """An arm's kind of line: broken where its color is used for the second or third time."""
    trunk = _trunk(results, arm)
    return "-" if trunk == results.control else _STROKES[_position(results, trunk) // len(COLORS) % len(_STROKES)]


def _trunk(results: Results, arm: str) -> str:
    """The arm itself, or that which it is a branch of."""
    return results.arms[arm].get("branch_of") or arm


def _position(results: Results, arm: str) -> int:
    return [name for name in results.arms if name != results.control and _trunk(results, name) == name].index(arm)


def mean_over_seeds(curves: Sequence[Curve], cost: str, values: Callable[[Curve], Sequence[float | None]]) -> tuple[
    list[float], list[float], list[float], list[float]
]:  # fmt: skip
    """(x, means, lowest, highest) at the evaluations that all seeds have."""
    common = sorted(set.intersection(*({*curve.step} for curve in curves)))
    x, means, lows, highs = [], [], [], []
    for step in common:
        at = [(curve, curve.step.index(step)) for curve in curves]
        known = [value for curve, i in at if (value := values(curve)[i]) is not None]
        if known:
            x.append(statistics.mean(getattr(curve, cost)[i] for curve, i in at))
            means.append(statistics.mean(known))
            lows.append(min(known))
            highs.append(max(known))
    return x, means, lows, highs


def table(
    rows: Iterable[tuple[str, Sequence[float], Sequence[float]]], head: list[str]
) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of curves: arm, x and value of each point."""
    return head, [[arm, f"{x:.6g}", f"{y:.4f}"] for arm, xs, ys in rows for x, y in zip(xs, ys, strict=True)]
