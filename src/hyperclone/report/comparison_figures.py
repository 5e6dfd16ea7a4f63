"""Figures of ends: accuracies of each task, speed-ups, arms of one group, clones by their source."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from hyperclone.report import curve_figures
from hyperclone.report.axes import literal
from hyperclone.report.canvas import Canvas
from hyperclone.report.headline import EFFICIENCY, SPEEDUP, measure
from hyperclone.report.load import AXES, Results, in_groups
from hyperclone.report.styles import color


def tasks(results: Results) -> Canvas:
    """The last accuracy of each task."""
    canvas = Canvas("tasks", "Final accuracy of each task", "Bars are means over seeds, points are seeds.")
    axes = canvas.axes[0]
    names, rows = results.tasks, []
    width = 0.8 / max(1, len(results.curves))
    for number, (arm, runs) in enumerate(results.curves.items()):
        positions = [i - 0.4 + width * (number + 0.5) for i in range(len(names))]
        finals = [[v for curve in runs if (v := _last(curve.tasks.get(name, ()))) is not None] for name in names]
        heights = [statistics.mean(values) if values else None for values in finals]
        axes.bars(arm, color(results, arm), positions, heights, width * 0.9, finals)
        rows += [[arm, name, f"{one:.4f}"] for name, one in zip(names, heights, strict=True) if one is not None]
        if known := [one for one in heights if one is not None]:
            axes.labels.append((len(names) - 0.5, statistics.mean(known), arm, color(results, arm)))
    axes.names = names
    axes.plot.set_xticks(range(len(names)), [literal(name) for name in names])
    axes.plot.set_xlim(-0.5, len(names) - 0.5)
    axes.plot.grid(visible=False, axis="x")
    canvas.label(axes, "", "accuracy")
    canvas.table = (["arm", "task", "accuracy"], rows)
    return canvas


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def dots(
    canvas: Canvas, results: Results, arms: Sequence[str], values: Callable[[str], Sequence[float]], x: str,
    *, without: Callable[[str], str] = lambda arm: "", median: Callable[[str], float | None] | None = None,
) -> None:  # fmt: skip
    """One row for each arm: seeds as points, the median as a stroke; words where there is no point."""
    axes = canvas.axes[-1]
    rows: list[list[str]] = []
    for row, arm in enumerate(reversed(arms)):
        points = [value for value in values(arm) if math.isfinite(value)]
        if points:
            middle = statistics.median(points) if median is None else median(arm)
            if middle is not None:
                axes.median(arm, color(results, arm), middle, row)
            axes.points(arm, color(results, arm), points, [row] * len(points), shown="x", alpha=0.75)
            rows = [[arm, f"{value:.5g}"] for value in points] + rows
        if words := without(arm):
            axes.words(arm, color(results, arm), words, row)
            rows = [[arm, words], *rows]
    axes.rows = list(reversed(arms))
    axes.plot.set_yticks(range(len(arms)), [literal(arm) for arm in reversed(arms)])
    axes.plot.set_ylim(-0.6, len(arms) - 0.4)
    if any(without(arm) for arm in arms):
        axes.plot.set_xmargin(0.3)  # so that no word lies on a point
    axes.plot.locator_params(axis="x", nbins=5)
    for tick, arm in zip(axes.plot.get_yticklabels(), reversed(arms), strict=True):
        tick.set_color(color(results, arm))
    canvas.label(axes, x, "")
    canvas.table = (["arm", x], rows)


def speedups(results: Results) -> Canvas | None:
    """Speed-up in tokens of every arm; None if no arm has a finite one over its seeds."""
    arms = _others(results)

    def without(arm: str) -> str:
        factors = [row.speedup_tokens for row in results.speedups[arm]]
        never, at_start = sum(one is None for one in factors), sum(one == math.inf for one in factors)
        notes = [f"{words} in {count} of {len(factors)} seeds" if count < len(factors) else words
                for words, count in (("not reached", never), ("at the start", at_start)) if count]  # fmt: skip
        return ", ".join(notes)

    def values(arm: str) -> list[float]:
        return [math.nan if (one := row.speedup_tokens) is None else one for row in results.speedups[arm]]

    def median(arm: str) -> float | None:
        found = measure(results.speedups[arm])
        return found.median if found is not None and found.kind == SPEEDUP else None

    if all(median(arm) is None for arm in arms):
        return None
    canvas = Canvas(
        "speedup", "Speed-up in tokens",
        "Tokens of the control arm's whole training over those that an arm needs to the same held-out loss. "
        "Points are seeds, strokes medians, for which a seed that never reaches that loss counts as 0. Such a seed has "
        "no point, nor has one that starts below that loss.",
        height=1.2 + 0.34 * len(arms),
    )  # fmt: skip
    dots(canvas, results, arms, values, "speed-up in tokens", without=without, median=median)
    canvas.axes[0].rule(1, across=False)
    return canvas


def efficiencies(results: Results) -> Canvas | None:
    """Token efficiency of the arms that have no speed-up; None if all have one."""
    arms = [arm for arm in _others(results) if (found := measure(results.speedups[arm])) and found.kind == EFFICIENCY]
    if not arms:
        return None
    canvas = Canvas(
        "efficiency", "Token efficiency relative to the control",
        "Tokens that the control arm needs to the last loss of an arm that ends above it, over the arm's own. Points "
        "are seeds, strokes their medians; a seed that ends below the control has no point.",
        height=1.2 + 0.34 * len(arms),
    )  # fmt: skip
    dots(canvas, results, arms,
         lambda arm: [one for row in results.speedups[arm] if (one := row.token_efficiency) is not None],
         "token efficiency")  # fmt: skip
    canvas.axes[0].rule(1, across=False)
    return canvas


def _others(results: Results) -> list[str]:
    return [arm for arm, rows in results.speedups.items() if arm != results.control and rows]


def groups(results: Results) -> Iterator[Canvas]:
    """Arms that a study compares with each other: expansions, noise, factors, ..."""
    for number, (group, arms) in enumerate(results.groups().items()):
        canvas = Canvas(f"group-{number}", f"Compared: {group}",
                        "First: held-out loss, mean and range over seeds. Second: at the end; points are seeds, "
                        "strokes medians.", columns=2, widths=(3, 2),
                        height=max(2.8, 1.2 + 0.34 * len(arms)))  # fmt: skip
        curve_figures.lines(canvas.axes[0], results, arms, "tokens")
        canvas.axes[0].labels.clear()  # the other half says which is which
        canvas.label(canvas.axes[0], "tokens", "held-out loss (nats per token)")
        dots(canvas, results, arms, lambda arm: [curve.loss[-1] for curve in results.curves[arm]],
             "final held-out loss")  # fmt: skip
        yield canvas
        if not {*arms} <= {*curve_figures.principal(results)}:
            first = curve_figures.early(results, arms, name=f"early-{number}", title=f"The first tenth: {group}")
            if first is not None:
                yield first


def sources(results: Results) -> Iterator[Canvas]:
    """Clones by what their source was: how long it was trained, how large it is."""
    known = results.study.get("sources", {})
    for group, (field, label) in AXES.items():
        sized = []
        for name, arm in results.arms.items():
            size = (known.get(arm.get("source") or "") or {}).get(field)
            if group in in_groups(arm) and size and name in results.curves:
                sized.append((size, name))
        if len(sized) < 2:
            continue
        canvas = Canvas(group.replace(" ", "-"), f"Clones by {group}", f"Final held-out loss against {label}; points "
                        "are seeds.")  # fmt: skip
        axes = canvas.axes[0]
        rows = []
        for size, name in sorted(sized):
            losses = [curve.loss[-1] for curve in results.curves[name]]
            axes.points(name, color(results, name), [size] * len(losses), losses)
            axes.labels.append((size, statistics.median(losses), name, color(results, name)))
            rows += [[name, f"{size:.5g}", f"{loss:.4f}"] for loss in losses]
        axes.logarithmic()
        axes.plot.margins(x=0.25)
        axes.ticks_at(sorted({size for size, _ in sized}))
        axes.plot.minorticks_off()
        canvas.label(axes, label, "final held-out loss (nats per token)")
        canvas.table = (["arm", field, "loss"], rows)
        yield canvas
