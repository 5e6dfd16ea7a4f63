"""Colors: as figures are drawn in them, and what the page calls them."""

from __future__ import annotations

INK, GRID = "#010203", "#040506"  # sentinels: nothing else is drawn in these
LIGHT = {INK: "#1f2328", GRID: "#d0d7de"}
# Okabe and Ito's colors for the color-blind, without the two that are too pale or too dark on one of the pages.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D", "#66A61E", "#E7298A")
CONTROL = "#7F7F7F"
# What a color is called in the page, whose style says what it is on light and on dark.
PAGE = {INK: "var(--ink)", GRID: "var(--grid)", **{one: f"var(--c{i})" for i, one in enumerate(COLORS)}}


def on_page(color: str) -> str:
    """A color as the page's style knows it."""
    return PAGE.get(color, color)
