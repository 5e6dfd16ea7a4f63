"""What tokens of the arms are worth along the way (study/frontier.py): the curves, and a table at equal distance."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import groupby

from hyperclone.report.canvas import Canvas
from hyperclone.report.headline import spread
from hyperclone.report.load import Results, pairs
from hyperclone.report.styles import color, stroke
from hyperclone.study.frontier import RATIOS, Worth, along, at_ratio
from hyperclone.units import short_count

Value = Callable[[Worth], float | None]
_FIRST = 0.1  # share of an arm's training that is not shown: there, a small change of the loss is a large one of both


def worth(results: Results) -> Canvas | None:
    """Speed-up, and worth of a token past the head start, of every arm along its training.

    None if no arm has several points at losses that the control has, too.
    """
    curves = {arm: [_later(along(pair)) for pair in seeds] for arm, seeds in pairs(results).items()}
    shown = {arm: seeds for arm, seeds in curves.items() if all(len(seed) > 1 for seed in seeds)}
    if not shown:
        return None
    speedups = {arm: _over_seeds(seeds, lambda one: one.speedup_tokens) for arm, seeds in shown.items()}
    worths = {arm: _over_seeds(seeds, lambda one: one.token_worth) for arm, seeds in shown.items()}
    if not any(speedups.values()):
        return None
    both = any(worths.values())
    canvas = Canvas(
        "worth", "What a token is worth along the way",
        "Speed-up s: tokens that the control arm needs to the loss of an arm, over the arm's. "
        + ("Worth of a token g: the same without what the control needs to the loss of the arm's source, its head "
           "start. " if both else "")
        + "Medians over seeds, with the range; the first tenth of the training is left out. " + _how_measured(results),
        columns=2 if both else 1, height=3.8,
    )  # fmt: skip
    rows: list[list[str]] = []
    halves = (("speed-up s in tokens", speedups), ("worth of a token g", worths))
    for axes, (title, lines) in zip(canvas.axes, halves, strict=False):
        for arm, line in lines.items():
            if line:
                tokens, lows, medians, highs = zip(*line, strict=True)
                axes.line(arm, color(results, arm), tokens, medians, band=(lows, highs),
                          linestyle=stroke(results, arm))  # fmt: skip
        axes.rule(1, across=True)
        if axes is not canvas.axes[-1] and all(worths[arm] for arm, line in lines.items() if line):
            axes.labels.clear()  # the right half says which is which
        canvas.label(axes, "tokens of the arm", title)
    for arm, points in speedups.items():
        by_tokens = {tokens: median for tokens, _, median, _ in worths[arm]}
        rows += [
            [arm, short_count(tokens), f"{median:.2f}", f"{by_tokens[tokens]:.2f}" if tokens in by_tokens else ""]
            for tokens, _, median, _ in points
        ]
    canvas.table = (["arm", "tokens", "speed-up", "worth of a token"], rows)
    return canvas


def at_equal_distance(results: Results) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of speed-ups where the control has had so many times the head start; no rows if none came there."""
    head = ["arm", *(f"T / D0 = {ratio:g}" for ratio in RATIOS)]
    rows = []
    for arm, seeds in pairs(results).items():
        cells = [_cell([at_ratio(pair, ratio) for pair in seeds]) for ratio in RATIOS]
        if any(cells):
            rows.append([arm, *cells])
    reached = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return [head[i] for i in reached], [[row[i] for i in reached] for row in rows]


def _cell(seeds: Sequence[Worth | None]) -> str:
    """A speed-up over seeds; empty unless all of them came there."""
    values = [one.speedup_tokens for one in seeds if one is not None]
    return spread(values) if values and len(values) == len(seeds) else ""


def _later(points: Sequence[Worth]) -> list[Worth]:
    """Without the first tenth of the training."""
    return [one for one in points if one.tokens >= _FIRST * points[-1].tokens]


def _over_seeds(seeds: Sequence[Sequence[Worth]], value: Value) -> list[tuple[float, float, float, float]]:
    """(tokens, lowest, median, highest) where every seed has a value."""
    every = sorted((one.tokens, known) for seed in seeds for one in seed if (known := value(one)) is not None)
    found = []
    for tokens, group in groupby(every, key=lambda pair: pair[0]):
        values = [known for _, known in group]
        if len(values) == len(seeds):
            found.append((tokens, min(values), statistics.median(values), max(values)))
    return found


def _how_measured(results: Results) -> str:
    if any(arm.get("branch_of") == results.control for arm in results.arms.values()):
        return "The control's tokens are between ends of its runs, each after a whole decay, straight in log tokens."
    return (
        "The control's tokens are those of its one run, whose learning rate had not decayed yet in between: "
        "shorter runs of the control would need fewer, so these figures favor the arms."
    )
