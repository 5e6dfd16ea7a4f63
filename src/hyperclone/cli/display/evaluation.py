"""An evaluation in the terminal: one row for each task and metric, model and source side by side."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from hyperclone.cli.display.plan_and_proof import plain_table
from hyperclone.evaluation.evaluate import Evaluation
from hyperclone.evaluation.scores import Row


def table(evaluation: Evaluation) -> RenderableType:
    """The results in percent (perplexity as it is) with standard errors, and the notes."""
    paired = evaluation.mean("source") is not None or any(row.source is not None for row in evaluation.rows)
    title = f"Zero-shot, {evaluation.documents:,} documents, {evaluation.dtype}, data: {evaluation.data}"
    results = plain_table(title=title)
    results.add_column("task", no_wrap=True)
    results.add_column("metric", no_wrap=True)
    for name in ("documents", *(("source", "model", "difference") if paired else ("model",))):
        results.add_column(name, justify="right", no_wrap=True)
    previous = ""
    for row in evaluation.rows:
        cells = [_cell(row, row.source, row.source_error)] if paired else []
        cells.append(_cell(row, row.value, row.error))
        cells += [_cell(row, row.difference, row.difference_error, sign=True)] if paired else []
        first = row.task != previous
        results.add_row(row.task if first else "", row.metric + (" *" if row.main else ""),
                     f"{row.documents:,}" if first else "", *cells)  # fmt: skip
        previous = row.task
    if (mean := evaluation.mean()) is not None and sum(row.main for row in evaluation.rows) > 1:
        source = evaluation.mean("source")
        both = [f"{100 * source:.1f}"] if source is not None else []
        last = [f"{100 * (mean - source):+.1f}"] if source is not None else []
        results.add_row("mean of *", "", "", *both, f"{100 * mean:.1f}", *last, style="bold")
    parts: list[RenderableType] = [results]
    if evaluation.largest_gap is not None:
        changed = (
            f"{evaluation.changed} of {evaluation.documents:,} documents are right on one side and wrong on the other"
        )
        parts.append(Text(f"{changed}; log-likelihoods differ by {evaluation.largest_gap:.1e} at most"))
    if evaluation.limit is not None:
        parts.append(Text(f"- The first {evaluation.limit} documents of each task only (--limit).", style="dim"))
    parts += [Text(f"- {note}", style="dim") for note in evaluation.notes]
    return Group(*parts)


def _cell(row: Row, value: float | None, error: float | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    scale, form, of_error = (1, ".4g", ".2g") if row.metric == "perplexity" else (100, ".1f", ".1f")
    shown = format(scale * value, ("+" if sign else "") + form)
    return shown + (f" ± {format(scale * error, of_error)}" if error is not None else "")
