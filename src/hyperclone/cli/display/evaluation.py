"""An evaluation as people read it: one row for each task and metric, model and source side by side."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.evaluation.evaluate import Evaluation
from hyperclone.evaluation.scores import Row


def table(found: Evaluation) -> RenderableType:
    """The results in per cent (perplexity as it is) with standard errors, and what is not as in the harness."""
    pair = found.mean("source") is not None or any(row.source is not None for row in found.rows)
    title = f"Zero-shot, {found.documents:,} documents, {found.dtype}, data: {found.data}"
    made = Table(
        box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold", header_style="dim"
    )
    made.add_column("task", no_wrap=True)
    made.add_column("metric", no_wrap=True)
    for name in ("documents", *(("source", "model", "difference") if pair else ("model",))):
        made.add_column(name, justify="right", no_wrap=True)
    before = ""
    for row in found.rows:
        cells = [_cell(row, row.source, row.source_error)] if pair else []
        cells.append(_cell(row, row.value, row.error))
        cells += [_cell(row, row.difference, row.difference_error, sign=True)] if pair else []
        first = row.task != before
        made.add_row(row.task if first else "", row.metric + (" *" if row.main else ""),
                     f"{row.documents:,}" if first else "", *cells)  # fmt: skip
        before = row.task
    if (mean := found.mean()) is not None and sum(row.main for row in found.rows) > 1:
        source = found.mean("source")
        both = [f"{100 * source:.1f}"] if source is not None else []
        last = [f"{100 * (mean - source):+.1f}"] if source is not None else []
        made.add_row("mean of *", "", "", *both, f"{100 * mean:.1f}", *last, style="bold")
    parts: list[RenderableType] = [made]
    if found.largest_gap is not None:
        parts.append(
            Text(
                f"{found.changed} of {found.documents:,} documents are right on one side and wrong on the other; "
                f"log-likelihoods differ by {found.largest_gap:.1e} at most"
            )
        )
    if found.limit is not None:
        parts.append(Text(f"- The first {found.limit} documents of each task only (--limit).", style="dim"))
    parts += [Text(f"- {note}", style="dim") for note in found.notes]
    return Group(*parts)


def _cell(row: Row, value: float | None, error: float | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    scale, form, of_error = (1, ".4g", ".2g") if row.metric == "perplexity" else (100, ".1f", ".1f")
    shown = format(scale * value, ("+" if sign else "") + form)
    return shown + (f" ± {format(scale * error, of_error)}" if error is not None else "")
