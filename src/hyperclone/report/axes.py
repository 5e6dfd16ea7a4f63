"""One set of axes, drawn for paper and kept as numbers: the page draws these itself, at its own width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperclone.report.palette import INK, on_page
from hyperclone.units import short_count

_DASHES = {"-": "", ":": "1 2.5"}


@dataclass
class Series:
    """Numbers behind what was drawn; None where there is nothing.

    Attributes:
        label, color: of the arm.
        arm: whose it is, where the label is another: it is hidden with that arm.
        x, y: (points,).
        kind: what the page shows of it under the pointer: of a `line` its height there, of `points` the nearest one
            (`x`, `y` or `both` of its numbers), of `bars` the height of the nearest name; nothing of a `quiet` line.
        shown: which numbers of points the page shows; the others only say where a name is.
        low, high: (points,) of a band.
        seeds: (bars, seeds) values behind each bar.
        dash: lengths of strokes and gaps, as in SVG.
        mark: whether each point of a line is marked.
        opacity: from 0 to 1.
    """

    label: str
    color: str
    arm: str
    x: Sequence[float]
    y: Sequence[float | None]
    kind: str = "line"
    shown: str = "both"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    seeds: Sequence[Sequence[float]] = ()
    dash: str = ""
    mark: bool = False
    opacity: float = 1.0

    def numbers(self) -> dict[str, Any]:
        """For the page, without what is as usual."""
        usual = {"shown": "both", "low": [], "high": [], "seeds": [], "dash": "", "mark": False, "opacity": 1.0}
        usual["arm"] = self.label
        values = {
            "label": self.label, "color": on_page(self.color), "arm": self.arm, "x": _short(self.x),
            "y": _short(self.y), "kind": self.kind, "shown": self.shown, "low": _short(self.low),
            "high": _short(self.high), "seeds": [_short(one) for one in self.seeds], "dash": self.dash,
            "mark": self.mark, "opacity": self.opacity,
        }  # fmt: skip
        return {name: value for name, value in values.items() if name not in usual or usual[name] != value}


@dataclass
class Axes:
    """One set of axes with what was drawn in it.

    Attributes:
        plot: matplotlib's axes.
        series, notes: what was drawn, and what the page draws beside it: rules, medians, words, spans.
        labels: (x, y, name, color) of names beside the ends of lines; none where another figure's names serve.
        names: of groups of bars, which stand at 0, 1, 2, ...
        rows: arms, from below, of a figure that has one row for each.
        titles: of the x axis, the y axis, and both.
        ticks: where the x axis is marked, if not where it looks best.
        base: of a logarithmic x axis.
    """

    plot: Any
    series: list[Series] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    labels: list[tuple[float, float, str, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    titles: tuple[str, str, str] = ("", "", "")
    ticks: list[float] | None = None
    base: int = 10

    def line(
        self, label: str, color: str, x: Sequence[float], y: Sequence[float], *, arm: str | None = None,
        band: tuple[Sequence[float], Sequence[float]] = ((), ()), opacity: float = 1.0, **style: Any,
    ) -> None:  # fmt: skip
        """A line that is named beside its end; `band`: from the lowest to the highest seed."""
        style = {"linewidth": 1.6, "linestyle": "-", **style}
        low, high = band
        if low:
            self.plot.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        self.plot.plot(x, y, color=color, alpha=opacity, **style)
        if list(low) == list(high):  # one seed
            low = high = ()
        self.series.append(Series(label, color, arm or label, list(x), list(y), low=low, high=high,
                                  dash=_dash(style["linestyle"]), mark="marker" in style, opacity=opacity))  # fmt: skip
        self.labels.append((x[-1], y[-1], label, color))

    def quiet_line(self, arm: str, color: str, x: Sequence[float], y: Sequence[float]) -> None:
        """A thin dotted line without a name: how it was before."""
        self.plot.plot(x, y, color=color, linewidth=1, linestyle=":")
        self.series.append(Series(arm, color, arm, list(x), list(y), "quiet", dash=_DASHES[":"]))

    def points(
        self, label: str, color: str, x: Sequence[float], y: Sequence[float], *, arm: str | None = None,
        shown: str = "both", **style: Any,
    ) -> None:  # fmt: skip
        """Points without a line; `shown`: the numbers that are shown under the pointer, `x`, `y` or `both`."""
        self.plot.plot(x, y, color=color, linestyle="none", **{"marker": "o", "markersize": 5, **style})
        self.series.append(Series(label, color, arm or label, list(x), list(y), "points", shown))

    def bars(
        self, label: str, color: str, x: Sequence[float], y: Sequence[float | None], width: float,
        seeds: Sequence[Sequence[float]],
    ) -> None:  # fmt: skip
        """One bar for each of `names`, which stand at 0, 1, 2, ..., and its seeds as points; None: no bar."""
        self.plot.bar(x, [0 if one is None else one for one in y], width, color=color, alpha=0.55)
        for at, values in zip(x, seeds, strict=True):
            self.plot.plot([at] * len(values), values, "o", color=color, markersize=3)
        self.series.append(Series(label, color, label, list(range(len(y))), list(y), "bars", seeds=seeds))

    def rule(self, value: float, *, across: bool, color: str = INK, dotted: bool = False, arm: str = "") -> None:
        """A line through the whole figure, `across` it or upright; hidden with `arm`."""
        draw = self.plot.axhline if across else self.plot.axvline
        draw(value, color=color, linewidth=1, linestyle=":" if dotted else "-")
        self.notes.append({"kind": "rule", "at": value, "across": across, "color": on_page(color), "arm": arm,
                           "dash": _DASHES[":"] if dotted else ""})  # fmt: skip

    def median(self, arm: str, color: str, value: float, row: int) -> None:
        """A stroke in the row of an arm."""
        self.plot.plot([value, value], [row - 0.3, row + 0.3], color=color, linewidth=2.5)
        self.notes.append({"kind": "median", "arm": arm, "color": on_page(color), "x": value, "row": row})

    def words(self, arm: str, color: str, text: str, row: int) -> None:
        """Words at the right end of the row of an arm."""
        self.plot.annotate(text, (1, row), (-4, 0), xycoords=("axes fraction", "data"), va="center", ha="right",
                           textcoords="offset points", fontsize=9, color=color)  # fmt: skip
        self.notes.append({"kind": "words", "arm": arm, "color": on_page(color), "text": text, "row": row})

    def span(self, text: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """An arrow between two points, with words in its middle."""
        self.plot.annotate("", end, start, arrowprops={"arrowstyle": "<->", "color": INK, "linewidth": 1.4})
        upright = start[0] == end[0]
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        self.plot.annotate(text, middle, (-6, 0) if upright else (0, 5), textcoords="offset points", color=INK,
                           ha="right" if upright else "center", va="center" if upright else "bottom", fontsize=11,
                           fontweight="bold")  # fmt: skip
        self.notes.append({"kind": "span", "text": text, "x": [start[0], end[0]], "y": [start[1], end[1]]})

    def legend(self) -> None:
        """Names apart from the lines, where they would lie on something."""
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=one.color, label=literal(one.label)) for one in self.series if one.kind == "line"]
        self.plot.legend(handles=lines, frameon=False, fontsize=9, loc="upper right", labelcolor=INK)
        self.labels.clear()

    def ticks_at(self, values: Sequence[float], texts: Sequence[str] | None = None) -> None:
        """Marks of the x axis at these values and nowhere else."""
        self.plot.set_xticks(values, texts)
        self.ticks = list(values)

    def logarithmic(self, *, base: int = 10) -> None:
        """The x axis is, with marks at powers of `base`."""
        self.plot.set_xscale("log", base=base)
        self.base = base

    def words_for_all(self) -> str:
        """What can be seen here, in words."""
        x, y, title = self.titles
        medians = [f"{one['arm']} {one['x']:.4g}" for one in reversed(self.notes) if one["kind"] == "median"]
        if self.rows:
            return f"{x}, medians: {', '.join(medians)}." if medians else ""
        about = f"{f'{title}: ' if title else ''}{y or 'the same'}{f' against {x}' if x else ''}"
        ends = []
        for one in self.series:
            known = [(at, value) for at, value in zip(one.x, one.y, strict=True) if value is not None]
            if known and one.kind == "bars":
                ends.append(f"{one.label} " + " ".join(f"{self.names[int(at)]} {value:.3g}" for at, value in known))
            elif known and one.kind != "quiet":
                ends.append(f"{one.label} {known[-1][1]:.4g} at {short_count(known[-1][0])}")
        return f"{about}; ends: {', '.join(ends)}." if ends else ""

    def numbers(self) -> dict[str, Any]:
        """What the page draws."""
        plot, (x, y, title) = self.plot, self.titles
        return {
            "x": [*plot.get_xlim(), plot.get_xscale() == "log"], "y": [*plot.get_ylim(), plot.get_yscale() == "log"],
            "labels": [x, y], "title": title, "names": self.names, "rows": self.rows, "ticks": self.ticks,
            "base": self.base, "named": bool(self.labels), "notes": self.notes,
            "series": [one.numbers() for one in self.series],
        }  # fmt: skip


def literal(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _dash(linestyle: Any) -> str:
    """Matplotlib's kind of line as SVG's."""
    return _DASHES[linestyle] if isinstance(linestyle, str) else " ".join(f"{1.6 * one:g}" for one in linestyle[1])


def _short(values: Sequence[float | None]) -> list[float | None]:
    """Numbers of six digits; whole ones as such, None where there is nothing to show."""
    shown = [None if value is None or not math.isfinite(value) else float(f"{value:.6g}") for value in values]
    return [int(value) if value is not None and value.is_integer() else value for value in shown]
