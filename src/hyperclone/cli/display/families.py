"""The supported architectures in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.architectures.support_table import COLUMNS, LEGEND, families, notes
from hyperclone.errors import printable
from hyperclone.hf.coverage import Coverage, counts
from hyperclone.planning.known import Known


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
        text_model = f"only its text model ({row.text_model}) grows, with --text-model" if row.text_model else ""
        shown.add_row(Text(row.model_type), Text(file), Text(row.reason or text_model, style="dim"))
    grown, causal, wholes = counts(rows)
    return Group(
        shown,
        Text(f"{grown} of {causal} causal language models of the installed transformers grow."),
        Text(f"Of {wholes} models that also see images or hear, the text model grows, with --text-model."),
    )


def known_table(about: Known) -> RenderableType:
    """What is known about one model."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    shown.add_row("model type", Text(printable(about.model_type, line=True)))
    if about.family is not None:
        what = f"families/{about.family.name}.toml ({', '.join(about.family.models)})"
        shown.add_row("family", Text(what))
    if about.text_model is not None:
        shown.add_row("grows", Text(f"only its text model ({about.text_model}), on its own: give --text-model"))
    for i, (title, text) in enumerate(about.grows.items()):
        shown.add_row("" if i else "sizes", Text(f"{title}: {text}"))
    if about.refused is not None:
        shown.add_row("refused", Text(printable(about.refused, line=True)))
    if about.cure is not None:
        shown.add_row("cure", Text(printable(about.cure, line=True)))
    for i, note in enumerate(about.notes):
        shown.add_row("" if i else "notes", Text(note))
    return Group(shown, Text("\n".join(LEGEND), style="dim")) if about.grows else shown
