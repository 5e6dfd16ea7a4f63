"""The figures of a report: the paper's (arXiv 2409.12903), drawn from a study's own runs, each if its data is there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from hyperclone.report.canvas import COLOURS, INK, Canvas
from hyperclone.report.reading import Curve, Results

_CONTROL = "#7F7F7F"
COSTS = (("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds of training"))


def every(results: Results) -> list[Canvas]:
    """All figures that the results allow, in the order of the page."""
    made: list[Canvas] = []
    if results.curves:
        made += [_loss(results, name, title) for name, title in COSTS]
        made.append(_early(results))
    made += _tasks(results)
    if any(row["speedup_tokens"] is not None for rows in results.speedups.values() for row in rows):
        made.append(_speedups(results))
    made += _groups(results)
    made += _sources(results)
    made += _anatomy(results)
    if results.tuning:
        made.append(_tuning(results))
    return made


def colour(results: Results, arm: str) -> str:
    """An arm's colour, the same in all figures; the control is grey."""
    others = [name for name in results.arms if name != results.control]
    return _CONTROL if arm == results.control else COLOURS[others.index(arm) % len(COLOURS)]


def over_seeds(curves: Sequence[Curve], cost: str, values: Callable[[Curve], Sequence[float | None]]) -> tuple[
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


def _table(rows: Iterable[tuple[str, Sequence[float], Sequence[float]]], head: list[str]) -> tuple[
    list[str], list[list[str]]
]:  # fmt: skip
    return head, [[arm, f"{x:.6g}", f"{y:.4f}"] for arm, xs, ys in rows for x, y in zip(xs, ys, strict=True)]


def _loss(results: Results, cost: str, title: str) -> Canvas:
    canvas = Canvas(
        f"loss-{cost}", f"Held-out loss against {title}",
        "Mean over seeds; the band goes from the lowest seed to the highest. The dotted line is the control arm's end.",
        height=4.2,
    )  # fmt: skip
    axes, rows = canvas.axes[0], []
    for arm, curves in results.curves.items():
        x, y, low, high = over_seeds(curves, cost, lambda curve: curve.loss)
        axes.band(colour(results, arm), x, low, high)
        axes.line(arm, colour(results, arm), x, y)
        rows.append((arm, x, y))
    losses = [value for _, _, y in rows for value in y]
    ends = [y[-1] for _, _, y in rows]
    best, start = min(losses), sorted(y[0] for _, _, y in rows)[0]
    top = max(max(ends), min(start, max(losses))) if ends else max(losses)
    axes.plot.set_ylim(
        best - 0.05 * (top - best + 0.1), top + 0.6 * (top - best + 0.1)
    )  # not the first fall from random
    if results.control is not None and results.control in results.curves:
        end = statistics.mean(curve.loss[-1] for curve in results.curves[results.control])
        axes.plot.axhline(end, color=_CONTROL, linewidth=1, linestyle=":")
    canvas.label(axes, title, "held-out loss (nats per token)")
    canvas.table = _table(rows, ["arm", title, "loss"])
    return canvas


def _early(results: Results) -> Canvas:
    canvas = Canvas(
        "early", "The first steps",
        "Held-out loss less the arm's own at the start, against steps. Above zero is what was forgotten.",
    )  # fmt: skip
    axes, rows = canvas.axes[0], []
    for arm, curves in results.curves.items():
        if results.arms[arm]["kind"] == "random":
            continue
        x, y, low, high = over_seeds(curves, "step", lambda curve: [value - curve.loss[0] for value in curve.loss])
        kept = [i for i, step in enumerate(x) if step > 0]
        x, y, low, high = ([values[i] for i in kept] for values in (x, y, low, high))
        if x:
            axes.band(colour(results, arm), x, low, high)
            axes.line(arm, colour(results, arm), x, y, marker="o", markersize=3)
            rows.append((arm, x, y))
    axes.plot.set_xscale("log")
    axes.plot.axhline(0, color=INK, linewidth=1)
    canvas.label(axes, "steps", "loss less that at the start (nats)")
    canvas.table = _table(rows, ["arm", "step", "difference"])
    return canvas


def _tasks(results: Results) -> Iterator[Canvas]:
    tasks = sorted({name for curves in results.curves.values() for curve in curves for name in curve.tasks})
    if not tasks:
        return
    canvas = Canvas("accuracy", "Mean accuracy against tokens", f"Mean over {', '.join(tasks)}, and over seeds.")
    axes, rows = canvas.axes[0], []
    for arm, curves in results.curves.items():

        def mean(curve: Curve) -> list[float | None]:
            columns = [curve.tasks[name] for name in tasks if name in curve.tasks]
            return [None if None in at or not at else statistics.mean(v for v in at if v is not None)
                    for at in zip(*columns, strict=True)]  # fmt: skip

        x, y, low, high = over_seeds(curves, "tokens", mean)
        if x:
            axes.band(colour(results, arm), x, low, high)
            axes.line(arm, colour(results, arm), x, y)
            rows.append((arm, x, y))
    canvas.label(axes, "tokens", "accuracy")
    canvas.table = _table(rows, ["arm", "tokens", "accuracy"])
    yield canvas
    canvas = Canvas("tasks", "Final accuracy of each task", "Bars are means over seeds, points are seeds.")
    axes = canvas.axes[0]
    width = 0.8 / max(1, len(results.curves))
    for number, (arm, curves) in enumerate(results.curves.items()):
        places = [i - 0.4 + width * (number + 0.5) for i in range(len(tasks))]
        finals = [[v for curve in curves if (v := _last(curve.tasks.get(name, ()))) is not None] for name in tasks]
        heights = [statistics.mean(values) if values else 0.0 for values in finals]
        axes.plot.bar(places, heights, width * 0.9, color=colour(results, arm), alpha=0.55)
        axes.points(arm, colour(results, arm), [x for x, values in zip(places, finals, strict=True) for _ in values],
                    [v for values in finals for v in values], markersize=3)  # fmt: skip
        canvas.table[1].extend([arm, name, f"{height:.4f}"] for name, height in zip(tasks, heights, strict=True))
    axes.plot.set_xticks(range(len(tasks)), tasks)
    canvas.label(axes, "", "accuracy")
    canvas.table = (["arm", "task", "accuracy"], canvas.table[1])
    yield canvas


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _dots(
    canvas: Canvas, results: Results, arms: Sequence[str], values: Callable[[str], Sequence[float]], x: str
) -> None:
    """One row for each arm: seeds as points, the median as a stroke."""
    axes = canvas.axes[0]
    for place, arm in enumerate(reversed(arms)):
        found = [value for value in values(arm) if math.isfinite(value)]
        if found:
            middle = statistics.median(found)
            axes.plot.plot([middle, middle], [place - 0.3, place + 0.3], color=colour(results, arm), linewidth=2.5)
            axes.points(arm, colour(results, arm), found, [place] * len(found), alpha=0.75)
            canvas.table[1].extend([arm, f"{value:.5g}"] for value in found)
    axes.plot.set_yticks(range(len(arms)), [f"{arm}" for arm in reversed(arms)])
    axes.plot.set_ylim(-0.6, len(arms) - 0.4)
    canvas.table = (["arm", x], canvas.table[1])
    canvas.label(axes, x, "")


def _speedups(results: Results) -> Canvas:
    arms = [arm for arm in results.speedups if arm != results.control]
    canvas = Canvas(
        "speedup", "Speed-up in tokens",
        "Tokens of the control arm's whole training over those that an arm needs to the same held-out loss. "
        "Arms that never get there, or start there, have no point.",
        height=1.2 + 0.34 * len(arms),
    )  # fmt: skip
    _dots(canvas, results, arms, lambda arm: [row["speedup_tokens"] or math.nan for row in results.speedups[arm]],
          "speed-up in tokens")  # fmt: skip
    canvas.axes[0].plot.axvline(1, color=INK, linewidth=1)
    return canvas


def _groups(results: Results) -> Iterator[Canvas]:
    groups: dict[str, list[str]] = {}
    for name, arm in results.arms.items():
        if arm.get("group") and name in results.curves:
            for group in [arm["group"]] if isinstance(arm["group"], str) else arm["group"]:
                groups.setdefault(group, []).append(name)
    for number, (group, arms) in enumerate(groups.items()):
        if len(arms) < 2 or group in ("source quality", "source size"):
            continue
        canvas = Canvas(f"group-{number}", f"Compared: {group}", "Final held-out loss; points are seeds.",
                        height=1.2 + 0.34 * len(arms))  # fmt: skip
        _dots(canvas, results, arms, lambda arm: [curve.loss[-1] for curve in results.curves[arm]],
              "final held-out loss (nats per token)")  # fmt: skip
        yield canvas


def _sources(results: Results) -> Iterator[Canvas]:
    sources = results.study.get("sources", {})
    for group, field, label in (
        ("source quality", "tokens", "tokens that the source was trained on"),
        ("source size", "parameters", "parameters of the source"),
    ):
        found = []
        for name, arm in results.arms.items():
            told = arm.get("group")
            place = (sources.get(arm.get("source") or "") or {}).get(field)
            if (
                told is not None
                and group in ([told] if isinstance(told, str) else told)
                and place
                and name in results.curves
            ):
                found.append((place, name))
        if len(found) < 2:
            continue
        canvas = Canvas(group.replace(" ", "-"), f"Clones by {group}", f"Final held-out loss against {label}.")
        axes = canvas.axes[0]
        for place, name in sorted(found):
            losses = [curve.loss[-1] for curve in results.curves[name]]
            axes.points(name, colour(results, name), [place] * len(losses), losses)
            canvas.table[1].extend([name, f"{place:.5g}", f"{loss:.4f}"] for loss in losses)
        axes.plot.set_xscale("log")
        canvas.table = (["arm", field, "loss"], canvas.table[1])
        canvas.label(axes, label, "final held-out loss (nats per token)")
        yield canvas


def _anatomy(results: Results) -> Iterator[Canvas]:
    rows = [row for row in results.anatomy if row["cosine"] and row["layer"] != ""]
    if rows:
        canvas = Canvas(
            "symmetry", "Symmetry between copies, by layer",
            "Mean cosine between the copies of the columns that read a grown axis (paper, section 3.2), over the "
            "matrices of a layer: dashed before training, solid after. At 1, copies are equal and the added width is "
            "not used.",
        )  # fmt: skip
        axes = canvas.axes[0]
        for arm in dict.fromkeys(row["arm"] for row in rows):
            for end in (False, True):
                own = [row for row in rows if row["arm"] == arm and (float(row["tokens"]) > 0) == end]
                layers = sorted({int(row["layer"]) for row in own})
                y = [statistics.mean(float(row["cosine"]) for row in own if int(row["layer"]) == at) for at in layers]
                if end and y:
                    axes.line(arm, colour(results, arm), layers, y, marker="o", markersize=4)
                elif y:
                    axes.plot.plot(layers, y, color=colour(results, arm), linewidth=1, linestyle="--")
                canvas.table[1].extend([arm, "after" if end else "before", str(at), f"{v:.4f}"]
                                       for at, v in zip(layers, y, strict=True))  # fmt: skip
        axes.plot.set_xticks(sorted({int(row["layer"]) for row in rows}))
        canvas.table = (["arm", "training", "layer", "cosine"], canvas.table[1])
        canvas.label(axes, "layer", "cosine between copies")
        yield canvas
    shown = _middle([one for one in results.spectra if one["layer"] is not None])
    if shown:
        canvas = Canvas("spectra", "Singular values before and after training",
                        "Over the largest, by rank: dashed before training, solid after (paper, section 3.3).",
                        columns=len(shown))  # fmt: skip
        for axes, name in zip(canvas.axes, shown, strict=True):
            for one in results.spectra:
                if one["name"] != name:
                    continue
                ranks = [i / max(1, len(one["values"]) - 1) for i in range(len(one["values"]))]
                if one["tokens"]:
                    axes.line(one["arm"], colour(results, one["arm"]), ranks, one["values"])
                else:
                    axes.plot.plot(ranks, one["values"], color=colour(results, one["arm"]), linewidth=1, linestyle="--")
            if axes is not canvas.axes[-1]:
                axes.labels.clear()
            short = ".".join(part for part in name.split(".") if part not in ("model", "weight"))
            canvas.label(axes, "rank", "over the largest" if axes is canvas.axes[0] else "", short)
        yield canvas


def _middle(spectra: Sequence[dict[str, object]] | Sequence[object]) -> list[str]:
    """Two matrices of a middle layer: what a block reads into, and what it writes with."""
    names = sorted({str(one["name"]) for one in spectra}, key=lambda name: name)  # type: ignore[index]
    layers = sorted({int(one["layer"]) for one in spectra})  # type: ignore[index]
    if not layers:
        return []
    at = [name for name in names if f".{layers[len(layers) // 2]}." in name]
    return [name for kind in ("q_proj", "up_proj", "down_proj", "query", "fc", "mlp") for name in at if kind in name][
        :2
    ] or at[:2]


def _tuning(results: Results) -> Canvas:
    canvas = Canvas("tuning", "How learning rates were chosen",
                    "Loss on the validation text after a short training with a seed of its own.")  # fmt: skip
    axes, rows = canvas.axes[0], []
    for arm, tried in results.tuning.items():
        kept = [(rate, loss) for rate, loss in sorted(tried) if math.isfinite(loss)]
        if kept:
            x, y = [rate for rate, _ in kept], [loss for _, loss in kept]
            axes.line(arm, colour(results, arm), x, y, marker="o", markersize=4)
            rows.append((arm, x, y))
    axes.plot.set_xscale("log", base=2)
    rates = sorted({rate for _, x, _ in rows for rate in x})
    if len(rates) < 2 or all(b / a > 1.3 for a, b in pairwise(rates)):
        axes.plot.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.plot.minorticks_off()
    canvas.label(axes, "learning rate", "validation loss (nats per token)")
    canvas.table = _table(rows, ["arm", "learning rate", "loss"])
    return canvas
