"""The supported architectures in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.architectures.support_table import COLUMNS, LEGEND, families, notes
from hyperclone.hf.coverage import Coverage


def table(*, width: int) -> RenderableType:
    """The table for a terminal of `width` columns; a narrow one omits the columns that the legend covers."""
    rows = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    columns = COLUMNS if width >= 120 else dict(list(COLUMNS.items())[:6])
    for title in columns:
        rows.add_column(title, no_wrap=title not in ("models", "model type"), overflow="fold")
    for family in families():
        rows.add_row(*(Text(cell(family)) for cell in columns.values()))
    lines = [Text(f"- {', '.join(f.model_types)}: {note}", style="dim") for f in families() for note in notes(f)]
    return Group(rows, Text("\n".join(LEGEND)), *lines)


def coverage_table(rows: Sequence[Coverage]) -> RenderableType:
    """Every model type, and the family file that grows it or the reason why none does."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for title in ("model type", "grows by", "or does not, because"):
        shown.add_column(title, overflow="fold")
    for row in rows:
        file = f"families/{row.family}.toml" if row.family else ""
        shown.add_row(Text(row.model_type), Text(file), Text(row.reason or "", style="dim"))
    grown = sum(row.family is not None for row in rows)
    return Group(shown, Text(f"{grown} of {len(rows)} causal language models of the installed transformers grow."))
