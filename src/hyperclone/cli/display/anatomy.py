"""An anatomy in the terminal: the verdict, and a table for each measure with kinds as rows and layers as columns."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.anatomy.examine import Anatomy, TensorAnatomy
from hyperclone.anatomy.figure import join_kinds, sizes_text
from hyperclone.anatomy.weights import mean
from hyperclone.cli.display.plan_and_proof import plain_table

_Value = Callable[[TensorAnatomy], float | None]


_MEASURES: tuple[tuple[str, _Value, str], ...] = (
    ("Weights: cosine between copies of inputs (1 equal, 0 unrelated)", lambda t: t.input_symmetry, ".3f"),
    ("Weights: cosine between copies of outputs", lambda t: t.output_symmetry, ".3f"),
    ("Weights: effective rank", lambda t: t.effective_rank, ".0f"),
    ("Weights: effective rank over the source's", lambda t: t.rank_gain, ".2f"),
    ("Weights: stable rank", lambda t: t.stable_rank, ".1f"),
    ("Activations: share of the added width in use, in the inputs of these matrices", lambda t: t.in_use, ".1%"),
)


def tables(anatomy: Anatomy) -> RenderableType:
    """The verdict, a table for each measure, and the notes."""
    parts: list[RenderableType] = [
        Text(anatomy.verdict, style="bold yellow" if anatomy.locked else "bold"), Text(sizes_text(anatomy), style="dim")
    ]  # fmt: skip
    for title, value, form in _MEASURES:
        if (table := _table(anatomy, title, value, form)) is not None:
            parts += [Text(), table]
    parts += [Text(), Text(f"activations: {anatomy.activations}", style="dim")]
    parts += [Text(f"- {note}", style="dim") for note in anatomy.notes]
    return Group(*parts)


def _table(anatomy: Anatomy, title: str, value: _Value, form: str) -> Table | None:
    """A table of one measure; None if it was not measured. Rows with equal cells (queries, keys, values) become one."""
    cells: dict[tuple[str, int | None], list[float | None]] = {}
    for tensor in anatomy.tensors:
        cells.setdefault((tensor.kind, tensor.layer), []).append(value(tensor))
    means = {cell: number for cell, values in cells.items() if (number := mean(values)) is not None}
    layers: list[int | None] = [*sorted({layer for _, layer in means if layer is not None})]
    layers += [None] if any(layer is None for _, layer in means) else []
    rows: dict[tuple[str, ...], list[str]] = {}
    for kind in dict.fromkeys(kind for kind, _ in means):
        row = tuple(format(means[kind, layer], form) if (kind, layer) in means else "" for layer in layers)
        rows.setdefault(row, []).append(kind)
    if not rows:
        return None
    table = plain_table(title=title)
    table.add_column("layer", overflow="fold")
    for layer in layers:
        table.add_column("-" if layer is None else str(layer), justify="right", no_wrap=True)
    for row, kinds in rows.items():
        table.add_row(Text(join_kinds(kinds)), *row)
    return table
