"""Drawing once, for page and paper: matplotlib figures whose SVG takes its colors from the page.

Ink and grid are drawn in two colors that nothing else has; in the page these and the arms' colors become CSS
variables, so that the same figure is dark on light and light on dark. What is drawn through `Canvas` is also kept as
numbers with the position of its axes, from which the page shows values under the pointer.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.units import short_count

INK, GRID = "#010203", "#040506"  # sentinels
_LIGHT = {INK: "#1f2328", GRID: "#d0d7de"}
# Okabe and Ito's colors for the color-blind, without the two that are too pale or too dark on one of the pages.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D", "#66A61E", "#E7298A")
# What a color is called in the page, whose style says what it is on light and on dark.
_PAGE = {INK: "var(--ink)", GRID: "var(--grid)", **{one: f"var(--c{i})" for i, one in enumerate(COLORS)}}


@dataclass
class Series:
    """Numbers behind what was drawn; None where there is nothing.

    Attributes:
        label, color: of the arm.
        x, y: (points,).
        kind: what the page shows of it under the pointer: of a `line` its height there, of `points` the nearest one
            (`x`, `y` or `both` of its numbers), of `bars` the height of the nearest name.
        shown: which numbers of points the page shows; the others only say where a name is.
    """

    label: str
    color: str
    x: Sequence[float]
    y: Sequence[float | None]
    kind: str = "line"
    shown: str = "both"


@dataclass
class Axes:
    """One set of axes with what was drawn in it."""

    plot: Any
    series: list[Series] = field(default_factory=list)
    labels: list[tuple[float, float, str, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def line(self, label: str, color: str, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
        """A line that is named beside its end."""
        self.plot.plot(x, y, color=color, **{"linewidth": 1.6, **style})
        self.series.append(Series(label, color, list(x), list(y)))
        self.labels.append((x[-1], y[-1], label, color))

    def band(self, color: str, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> None:
        """From the lowest to the highest seed."""
        self.plot.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)

    def points(
        self, label: str, color: str, x: Sequence[float], y: Sequence[float], *, shown: str = "both", **style: Any
    ) -> None:
        """Points without a line; `shown`: the numbers that are shown under the pointer, `x`, `y` or `both`."""
        self.plot.plot(x, y, color=color, linestyle="none", **{"marker": "o", "markersize": 5, **style})
        self.series.append(Series(label, color, list(x), list(y), "points", shown))

    def bars(self, label: str, color: str, x: Sequence[float], y: Sequence[float | None], width: float) -> None:
        """One bar for each of `names`, which stand at 0, 1, 2, ...; None: no bar."""
        self.plot.bar(x, [0 if one is None else one for one in y], width, color=color, alpha=0.55)
        self.series.append(Series(label, color, list(range(len(y))), list(y), "bars"))


class Canvas:
    """A figure being drawn.

    Attributes:
        name, title, caption: of the figure.
        table: (head, rows) of the numbers in it.
    """

    def __init__(
        self, name: str, title: str, caption: str, *, columns: int = 1, height: float = 3.6,
        widths: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        try:
            import matplotlib
        except ImportError:
            raise StudyError("matplotlib draws the figures, and it is not installed",
                             cure="pip install 'hyperclone[report]'") from None  # fmt: skip
        self.name, self.title, self.caption = name, title, caption
        self.table: tuple[list[str], list[list[str]]] = ([], [])
        matplotlib.use("Agg")
        with matplotlib.rc_context(_STYLE):
            from matplotlib.figure import Figure

            self.figure: Any = Figure(figsize=(8.4, height))
            found = self.figure.subplots(1, columns, squeeze=False, width_ratios=widths)[0]
            self.axes = [Axes(one) for one in found]
        for one in found:
            one.grid(color=GRID, linewidth=0.6)
            one.set_axisbelow(True)
            for side in ("top", "right"):
                one.spines[side].set_visible(False)
            for part in (one.spines["left"], one.spines["bottom"]):
                part.set_color(INK)
            one.tick_params(colors=INK, labelsize=9)

    def label(self, axes: Axes, x: str, y: str, title: str = "") -> None:
        """Names of the axes, and of each line at its end, pushed apart where they would overlap."""
        plot = axes.plot
        from matplotlib.ticker import FuncFormatter

        for axis, scale in ((plot.xaxis, plot.get_xscale()), (plot.yaxis, plot.get_yscale())):
            low, high = sorted(axis.get_view_interval())
            if high >= 10_000:
                axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
                axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
            elif scale == "log" and low >= 0.5 and high < 10_000:
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        plot.set_xlabel(x, color=INK, fontsize=10)
        plot.set_ylabel(y, color=INK, fontsize=10)
        if title:
            plot.set_title(literal(title), color=INK, fontsize=10, loc="left")
        self.figure.set_layout_engine("tight", pad=0.6, rect=None)  # a rect would be laid out twice
        if not axes.labels:
            return
        self.figure.get_layout_engine().execute(self.figure)  # where the axes lie is all that the names need
        box = plot.get_window_extent()
        gap = 12 * self.figure.dpi / 72
        columns: list[list[tuple[float, float, str, str]]] = []  # names beside each other's ends, from left to right
        for at, value, text, color in sorted(axes.labels):
            across, up = (float(one) for one in plot.transData.transform((at, value)))
            if across > box.x0 + 0.85 * box.width:
                across = box.x1
            if not columns or across - columns[-1][0][0] > 5 * gap:
                columns.append([])
            columns[-1].append((across, up, text, color))
        for column in columns:
            column.sort(key=lambda one: one[1])
            heights = _apart([one[1] for one in column], box.y0, box.y1, gap)
            across = (max(one[0] for one in column) - box.x0) / box.width
            for height, (_, _, text, color) in zip(heights, column, strict=True):
                plot.annotate(
                    literal(text), (across, (height - box.y0) / box.height), (6, 0), xycoords="axes fraction",
                    textcoords="offset points", color=color, fontsize=9, va="center", annotation_clip=False,
                )  # fmt: skip

    def svg(self) -> str:
        """The figure as SVG for the page: colors as variables, names of parts its own."""
        import matplotlib

        stream = io.StringIO()
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": self.name}):
            self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = stream.getvalue()
        text = text[text.index("<svg") :]
        for color, variable in _PAGE.items():
            text = text.replace(color.lower(), variable)
        return _small(text, self.name)

    def numbers(self) -> list[dict[str, Any]]:
        """Axes and series for the page: boxes in the SVG's own units."""
        size = self.figure.get_size_inches() * 72
        numbers = []
        for axes in self.axes:
            box = axes.plot.get_position()
            numbers.append({
                "box": [box.x0 * size[0], (1 - box.y1) * size[1], box.width * size[0], box.height * size[1]],
                "x": [*axes.plot.get_xlim(), axes.plot.get_xscale() == "log"],
                "y": [*axes.plot.get_ylim(), axes.plot.get_yscale() == "log"],
                "names": axes.names,
                "series": [{"label": one.label, "color": on_page(one.color), "x": _short(one.x), "y": _short(one.y),
                            "kind": one.kind, "shown": one.shown} for one in axes.series],
            })  # fmt: skip
        return numbers

    def save(self, directory: Path) -> list[Path]:
        """PNG and SVG for a paper, dark on white."""
        files = []
        text = self.svg()
        for color, variable in _PAGE.items():
            text = text.replace(variable, _LIGHT.get(color, color))
        (directory / f"{self.name}.svg").write_text(text)
        files.append(directory / f"{self.name}.svg")
        for part in self.figure.findobj():
            for kind in ("color", "edgecolor", "facecolor"):
                get, put = getattr(part, f"get_{kind}", None), getattr(part, f"set_{kind}", None)
                if get is not None and put is not None and isinstance(value := get(), str) and value in _LIGHT:
                    put(_LIGHT[value])
        self.figure.savefig(directory / f"{self.name}.png", dpi=200, facecolor="white")
        files.append(directory / f"{self.name}.png")
        return files


_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.facecolor": "none",
    "figure.facecolor": "none",
}  # fmt: skip


def on_page(color: str) -> str:
    """A color as the page's style knows it."""
    return _PAGE.get(color, color)


def literal(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _small(svg: str, name: str) -> str:
    """SVG without what nobody sees: names that nothing refers to, white space, the third decimal of a point."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r'\s\bid="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r">\s+<", "><", svg)
    return re.sub(r"\s+", " ", svg)


def _apart(heights: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Ascending heights moved as little as upwards and then downwards allows, until they are `gap` apart."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(min(max(height, low), high), moved[-1] + gap if moved else low))
    limit = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _short(values: Sequence[float | None]) -> list[float | None]:
    """Numbers of six digits; whole ones as such, None where there is nothing to show."""
    shown = [None if value is None or not math.isfinite(value) else float(f"{value:.6g}") for value in values]
    return [int(value) if value is not None and value.is_integer() else value for value in shown]
