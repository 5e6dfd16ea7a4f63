"""Drawing once, for page and paper: matplotlib figures whose SVG takes its colors from the page.

Ink and grid are drawn in two colors that nothing else has; in the page these and the arms' colors become CSS
variables, so that the same figure is dark on light and light on dark. What is drawn through `Axes` is also kept as
numbers, from which the page draws the figure anew, at its own width; without scripts it shows the SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.report.axes import Axes, literal
from hyperclone.report.palette import GRID, INK, LIGHT, PAGE
from hyperclone.units import short_count


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
        self.height, self.widths = height, widths or [1] * columns
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
        plot, axes.titles = axes.plot, (x, y, title)
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
        for color, variable in PAGE.items():
            text = text.replace(color.lower(), variable)
        return _small(text, self.name)

    def numbers(self) -> dict[str, Any]:
        """What the page draws: widths of the axes in proportion, the height in inches of a figure 8.4 inches wide."""
        return {"title": self.title, "height": self.height, "widths": list(self.widths),
                "axes": [axes.numbers() for axes in self.axes]}  # fmt: skip

    def alternative(self) -> str:
        """The figure in words, for who cannot see it: where each line ends, and the middle of points."""
        parts = [one for axes in self.axes if (one := axes.words_for_all())]
        return f"{self.title}. {' '.join(parts)}"

    def save(self, directory: Path) -> list[Path]:
        """PNG and SVG for a paper, dark on white."""
        files = []
        text = self.svg()
        for color, variable in PAGE.items():
            text = text.replace(variable, LIGHT.get(color, color))
        (directory / f"{self.name}.svg").write_text(text)
        files.append(directory / f"{self.name}.svg")
        for part in self.figure.findobj():
            for kind in ("color", "edgecolor", "facecolor"):
                get, put = getattr(part, f"get_{kind}", None), getattr(part, f"set_{kind}", None)
                if get is not None and put is not None and isinstance(value := get(), str) and value in LIGHT:
                    put(LIGHT[value])
        self.figure.savefig(directory / f"{self.name}.png", dpi=200, facecolor="white")
        files.append(directory / f"{self.name}.png")
        return files


_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.facecolor": "none",
    "figure.facecolor": "none",
}  # fmt: skip


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
