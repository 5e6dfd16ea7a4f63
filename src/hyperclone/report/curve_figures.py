"""Figures along training: loss, the first steps, accuracy; and how learning rates were chosen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from hyperclone.report.axes import Axes
from hyperclone.report.canvas import Canvas
from hyperclone.report.load import Results
from hyperclone.report.palette import CONTROL
from hyperclone.report.styles import color, mean_over_seeds, stroke, table
from hyperclone.study.speedup import Curve

_MOST = 8  # arms that one figure can hold
_ELSEWHERE = " Other arms are drawn in their groups below."


def loss(results: Results, cost: str, title: str, *, log: bool = False) -> Canvas:
    """Held-out loss against one of tokens, flops and seconds; on a logarithmic axis without the start."""
    arms = principal(results)
    canvas = Canvas(
        f"loss-{cost}" + ("-log" if log else ""), f"Held-out loss against {title}",
        "Mean over seeds; the band goes from the lowest seed to the highest."
        + (" The dotted line is the control arm's end." if results.control in results.curves else "")
        + (_ELSEWHERE if len(arms) < len(_trunks(results)) else ""),
        height=4.2,
    )  # fmt: skip
    axes = canvas.axes[0]
    rows = lines(axes, results, arms, cost, log=log)
    if log:
        axes.logarithmic()
    if results.control is not None and results.control in results.curves:
        end = statistics.mean(curve.loss[-1] for curve in results.curves[results.control])
        axes.rule(end, across=True, color=CONTROL, dotted=True, arm=results.control)
    canvas.label(axes, title, "held-out loss (nats per token)")
    canvas.table = table(rows, ["arm", title, "loss"])
    return canvas


def principal(results: Results) -> list[str]:
    """All arms but branches; of many, those that no group will show, and those that the others are compared with."""
    every = _trunks(results)
    if len(every) <= _MOST:
        return every
    grouped = {arm for arms in results.groups().values() for arm in arms}
    compared = {results.control, results.headline, *(a for a, one in results.arms.items() if one["kind"] == "source")}
    found = [arm for arm in every if arm not in grouped or arm in compared]
    return found or every


def lines(
    axes: Axes, results: Results, arms: Sequence[str], cost: str, *, log: bool = False
) -> list[tuple[str, list[float], list[float]]]:
    """Held-out loss of some arms, zoomed to where they end: (arm, x, means) of each."""
    rows = []
    for arm in arms:
        x, y, low, high = mean_over_seeds(results.curves[arm], cost, lambda curve: curve.loss)
        if log:
            x, y, low, high = ([v for v, at in zip(one, x, strict=True) if at > 0] for one in (x, y, low, high))
        if x:
            axes.line(arm, color(results, arm), x, y, band=(low, high), linestyle=stroke(results, arm))
            rows.append((arm, x, y))
        for branch in _branches(results, arm):  # a point for the end of each
            x, y, *_ = mean_over_seeds(results.curves[branch], cost, lambda curve: curve.loss)
            axes.points(branch, color(results, branch), x[-1:], y[-1:], arm=arm)
            rows.append((branch, x[-1:], y[-1:]))
    if rows:
        best = min(min(y) for _, _, y in rows)
        # Up to the worst end or the best start: the first fall from random weights would flatten all that matters.
        top = max(*(y[-1] for _, _, y in rows), min(y[0] for _, _, y in rows))
        axes.plot.set_ylim(best - 0.05 * (top - best + 0.1), top + 0.6 * (top - best + 0.1))
    return rows


def _trunks(results: Results) -> list[str]:
    """Arms with results that are no branches of others."""
    return [arm for arm in results.curves if not results.arms[arm].get("branch_of")]


def _branches(results: Results, arm: str) -> list[str]:
    return [name for name in results.curves if results.arms[name].get("branch_of") == arm]


def early(
    results: Results, arms: Sequence[str], *, name: str = "early", title: str = "The first tenth of training"
) -> Canvas | None:
    """The first tenth of each run that does not start from random weights, at least four evaluations."""
    canvas = Canvas(
        name, title, "Held-out loss minus the arm's own at the start, against steps. Above zero is what was forgotten."
        + (_ELSEWHERE if name == "early" and len(arms) < len(_trunks(results)) else ""),
    )  # fmt: skip
    axes, rows = canvas.axes[0], []
    for arm in arms:
        curves = results.curves[arm]
        if results.arms[arm]["kind"] == "random":
            continue
        x, y, low, high = mean_over_seeds(curves, "step", lambda curve: [value - curve.loss[0] for value in curve.loss])
        after = [i for i, step in enumerate(x) if step > 0]
        kept = [i for number, i in enumerate(after) if number < 4 or x[i] <= 0.1 * x[-1]]
        if kept:
            x, y, low, high = ([values[i] for i in kept] for values in (x, y, low, high))
            axes.line(arm, color(results, arm), x, y, band=(low, high), linestyle=stroke(results, arm), marker="o",
                      markersize=3)  # fmt: skip
            rows.append((arm, x, y))
    if not rows:
        return None
    axes.logarithmic(base=2)
    axes.rule(0, across=True)
    lowest, usual = (min(0.0, of(min(y) for _, _, y in rows)) for of in (min, statistics.median))
    highest = max(0.0, *(max(y) for _, _, y in rows))
    if lowest < (floor := 3 * usual - highest - 0.01):
        lowest = floor  # a fall from a bad start would flatten what the figure is for
        canvas.caption += (
            " An arm that falls far at once, having started far from its source, is partly outside of the figure."
        )
    room = 0.08 * (highest - lowest) + 1e-3
    axes.plot.set_ylim(lowest - room, highest + room)
    canvas.label(axes, "steps", "loss minus that at the start (nats)")
    canvas.table = table(rows, ["arm", "step", "difference"])
    return canvas


def accuracy(results: Results) -> Canvas | None:
    """Mean accuracy over tasks, where all of them were run."""
    tasks = results.tasks
    canvas = Canvas("accuracy", "Mean accuracy against tokens", f"Mean over {', '.join(tasks)}, and over seeds.")
    axes, rows = canvas.axes[0], []

    def mean(curve: Curve) -> list[float | None]:
        columns = [curve.tasks[name] for name in tasks if name in curve.tasks]
        known = [[value for value in at if value is not None] for at in zip(*columns, strict=True)]
        return [statistics.mean(at) if len(at) == len(columns) else None for at in known]

    for arm, curves in results.curves.items():
        x, y, low, high = mean_over_seeds(curves, "tokens", mean)
        if x:
            axes.line(arm, color(results, arm), x, y, band=(low, high), linestyle=stroke(results, arm), marker="o",
                      markersize=3)  # fmt: skip
            rows.append((arm, x, y))
    if not rows:
        return None
    canvas.label(axes, "tokens", "accuracy")
    canvas.table = table(rows, ["arm", "tokens", "accuracy"])
    return canvas


def tuning(results: Results) -> Canvas | None:
    """Loss against learning rate, of the arms that were tuned; rates at which training diverged have no point."""
    canvas = Canvas("tuning", "How learning rates were chosen",
                    "Loss on the validation text after a short training with a seed of its own, minus the arm's "
                    "lowest. Rates at which training diverged have no point; those far from the lowest are outside.",
                    )  # fmt: skip
    axes, rows, above = canvas.axes[0], [], []
    for arm, tried in results.tuning.items():
        kept = [(rate, value) for rate, value in sorted(tried) if math.isfinite(value)]
        if kept:
            x, y = [rate for rate, _ in kept], [value for _, value in kept]
            over = [value - min(y) for value in y]
            axes.line(arm, color(results, arm), x, over, linestyle=stroke(results, arm), marker="o", markersize=4)
            rows.append((arm, x, y))
            above += sorted(over)[1:]
    if not rows:
        return None
    axes.logarithmic(base=2)
    rates = sorted({rate for _, x, _ in rows for rate in x})
    if len(rates) < 2 or all(b / a > 1.3 for a, b in pairwise(rates)):
        axes.ticks_at(rates, [f"{rate:g}" for rate in rates])
        axes.plot.minorticks_off()
    top = min(max(above, default=0.0), 3 * statistics.median(above or [0.0])) + 1e-3
    axes.plot.set_ylim(-0.06 * top, 1.1 * top)
    canvas.label(axes, "learning rate", "validation loss above the lowest (nats)")
    canvas.table = table(rows, ["arm", "learning rate", "loss"])
    return canvas
