"""The figure that a page opens with: the headline arm beside the control, and the answer as an arrow."""

from __future__ import annotations

import statistics

from hyperclone.report import comparison_figures, curve_figures
from hyperclone.report.canvas import Canvas
from hyperclone.report.headline import EFFICIENCY, LOWEST, SPEEDUP, Answer, final_losses, measure
from hyperclone.report.load import Results
from hyperclone.report.styles import table

_MOST = 10  # rows of a figure without a control


def draw(results: Results, answer: Answer) -> Canvas | None:
    """What the number means; None before the first run has ended."""
    arm, control = results.headline, results.control
    if answer.kind == LOWEST:
        return _lowest(results)
    if arm is None or control is None or not results.runs:
        return None
    canvas = Canvas("answer", "What the number means", "", height=3.2)
    axes = canvas.axes[0]
    rows = curve_figures.lines(axes, results, list(dict.fromkeys([control, arm])), "tokens")
    low, high = axes.plot.get_ylim()
    axes.plot.set_ylim(low - 0.08 * (high - low), high)  # room below the arrow
    target, final = (statistics.mean(curve.loss[-1] for curve in results.curves[one]) for one in (control, arm))
    whole, own = (results.curves[one][0].tokens[-1] for one in (control, arm))
    found = measure(results.speedups[arm])
    assert found is not None
    caption = "Held-out loss, mean over seeds, with the range. "
    if answer.kind == SPEEDUP:
        axes.rule(target, across=True, dotted=True)
        axes.span(answer.number, (whole / found.median, target), (whole, target))
        caption += "Dotted: where the control ends. The arrow goes from where the arm is there, to the control's end."
    elif answer.kind == EFFICIENCY:
        axes.rule(final, across=True, dotted=True)
        axes.span(answer.number, (own, final), (own * found.median, final))
        caption += "Dotted: where the arm ends. The arrow goes from there to where the control comes down to it."
    else:
        axes.rule(target, across=True, dotted=True)
        axes.span(answer.number, (own, target), (own, final))
        caption += "Dotted: where the control ends. The arrow goes from there to the arm's end."
    canvas.caption = caption
    axes.legend()
    canvas.label(axes, "tokens", "held-out loss (nats per token)")
    canvas.table = table(rows, ["arm", "tokens", "loss"])
    return canvas


def _lowest(results: Results) -> Canvas:
    """Final losses of the arms that end lowest."""
    last = final_losses(results)
    arms = sorted(last, key=lambda name: last[name])[:_MOST]
    some = f"The {len(arms)} lowest of {len(last)} arms. " if len(arms) < len(last) else ""
    canvas = Canvas("answer", "Final held-out loss", f"{some}Points are seeds, strokes their medians.",
                    height=1.2 + 0.34 * len(arms))  # fmt: skip
    comparison_figures.dots(
        canvas, results, arms, lambda arm: [run.curve.loss[-1] for run in results.runs[arm]],
        "final held-out loss (nats per token)",
    )  # fmt: skip
    return canvas
