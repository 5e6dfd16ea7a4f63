"""The supported architectures in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.architectures.support_table import COLUMNS, LEGEND, families, notes


def table(*, width: int) -> RenderableType:
    """The table for a terminal of `width` columns; a narrow one omits the columns that the legend covers."""
    rows = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    columns = COLUMNS if width >= 120 else dict(list(COLUMNS.items())[:6])
    for title in columns:
        rows.add_column(title, no_wrap=title not in ("models", "model type"))
    for family in families():
        rows.add_row(*(Text(cell(family)) for cell in columns.values()))
    lines = [Text(f"- {', '.join(f.model_types)}: {note}", style="dim") for f in families() for note in notes(f)]
    return Group(rows, Text("\n".join(LEGEND)), *lines)
