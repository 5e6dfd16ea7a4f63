"""The known architectures in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.architectures.support_table import COLUMNS, LEGEND, families, remarks


def table(*, width: int) -> RenderableType:
    """The table for a terminal of `width` columns; a narrow one gets no columns for what the legend says of all."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    columns = COLUMNS if width >= 120 else dict(list(COLUMNS.items())[:6])
    for title in columns:
        shown.add_column(title, no_wrap=title not in ("models", "model type"))
    for family in families():
        shown.add_row(*(Text(cell(family)) for cell in columns.values()))
    said = [Text(f"- {', '.join(f.model_types)}: {remark}", style="dim") for f in families() for remark in remarks(f)]
    return Group(shown, Text("\n".join(LEGEND)), *said)
