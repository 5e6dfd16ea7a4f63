"""Tables of plans, proposals and proofs, the two continuations side by side, and progress bars."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.errors import printable
from hyperclone.planning.notes import listed
from hyperclone.units import human_bytes, human_count, share

if TYPE_CHECKING:
    from hyperclone.io.streaming import Progress
    from hyperclone.planning.plan import Plan, TensorPlan
    from hyperclone.planning.proposals import Proposals
    from hyperclone.proof.behavioral import Behavior
    from hyperclone.proof.proof import Proof
    from hyperclone.proof.structural import Structure

_STAGES = {
    "grow": "Growing",
    "state": "Growing moments",
    "prove": "Proving weights",
    "compare": "Proving logits",
    "collapse": "Collapsing",
    "anatomy": "Measuring",
}


_LAYER = re.compile(r"^(.*?\.)\d+\.")  # what stands before a layer's number
_COPIES = {  # words of a plan's table
    "repeat": "each is the source's weight",
    "1/n": "n of them sum to the source's weight",
    "same": "the tensor does not grow",
    "random": "new, randomly initialized",
}
_LOGITS_LEGEND = (
    "error: of the grown model's logits, relative; source: the source's own, by rounding; allowed: what rounding "
    "explains{explained}\n"
    "largest: difference of one logit; KL: in nats; same top: {rows} with the same likeliest {choice}"
)
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without lines, whose columns but the first are aligned to the right."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold", header_style="dim"
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def plan_table(plan: Plan, *, tensors: bool = False) -> RenderableType:
    """Sizes before and after, what will be written, notes and warnings."""
    types = dict.fromkeys((str(plan.source_config.get("model_type")), str(plan.config.get("model_type"))))
    sizes = plain_table("", "source", "grown", "", title=f"Plan ({' to '.join(types)})")
    for name, (old, new) in plan.widths().items():
        sizes.add_row(name, f"{old:,}", f"{new:,}", f"{new / old:g}x" if new != old else "")
    old, new = plan.source_parameters, plan.parameters
    sizes.add_row("parameters", human_count(old), human_count(new), f"{new / old:.2f}x")
    if (active := plan.active_parameters) != new:
        sizes.add_row("active for a token", human_count(old), human_count(active), f"{active / old:.2f}x")
    files = f"{len(plan.shards)} file{'s' if len(plan.shards) > 1 else ''}"
    sizes.add_row("weights on disk", "", human_bytes(plan.nbytes), files)
    noise = plan.growth.noise + (f" noise, {plan.growth.snr_db:g} dB" if plan.growth.noise != "none" else " noise")
    parts: list[RenderableType] = [sizes]
    if plan.growth.wider:
        order = ", copies tiled" if plan.growth.order == "tiled" else ""  # the other order is the default
        parts.append(Text(f"{plan.growth.expansion} expansion, {noise}, seed {plan.growth.seed}{order}"))
    elif plan.growth.experts is not None:
        parts.append(Text(f"new routers from seed {plan.growth.seed}"))
    if tensors:
        parts += [Text(), _tensor_table(plan)]
    parts += [Text(f"- {note}", style="dim") for note in plan.notes]
    parts += [Text(f"WARNING: {warning}", style="bold yellow") for warning in plan.warnings]
    return Group(*parts)


def _tensor_table(plan: Plan) -> RenderableType:
    """One row for each kind of tensor, whose layers and experts are counted, and a legend."""
    kinds: dict[str, list[TensorPlan]] = {}
    for tensor in plan.tensors:
        kinds.setdefault(tensor_kind(tensor.name), []).append(tensor)
    table = plain_table("tensor", "copies", "grown", "layout")
    table.columns[3].justify = "left"
    for column in table.columns[:3]:
        column.no_wrap = True
    used = set()
    for kind, (first, *others) in kinds.items():
        copies = _copies(first)
        used.add("1/n" if copies.startswith("1/") else copies)
        name = kind + (f" x{len(others) + 1}" if others else "")
        table.add_row(Text(name), copies, shown_shape(first.shape), first.layout.text)
    prefix = next((match[1] for tensor in plan.tensors if (match := _LAYER.match(tensor.name))), None)
    legend = ["tensor: without .weight" + (f"; {{i}}: {prefix}0, 1, ..." if prefix else "")]
    legend += [f"copies: {'; '.join(f'{word}: {meaning}' for word, meaning in _COPIES.items() if word in used)}"]
    grouped = "; group: query heads of a key-value head" if "group" in plan.sizes else ""
    legend += [f"layout: the axes that each dimension runs over; a <- b: outputs a, inputs b{grouped}"]
    return Group(table, Text("\n".join(legend), style="dim"))


def tensor_kind(name: str) -> str:
    """A tensor's name for all layers and experts at once."""
    kind = _LAYER.sub("{i}.", name).removesuffix(".weight")
    return re.sub(r"\.\d+\.", ".{e}.", kind)


def _copies(tensor: TensorPlan) -> str:
    """What the copies of the source's weights hold, in a word of `_COPIES`."""
    if tensor.init_std:
        return "random"
    if tensor.shape == tensor.source_shape:
        return "same"
    return "repeat" if tensor.inputs == 1 else f"1/{tensor.inputs:g}"


def proposals_table(proposed: Proposals) -> RenderableType:
    """The proposed sizes with their numbers of parameters, notes and warnings."""
    title = f"Near {proposed.target:,} parameters ({proposed.model_type}, {proposed.source_parameters:,} now)"
    widths = [p.plan.widths() for p in proposed.proposals]
    # By the names of the options. Sizes that no proposal changes are omitted, and KV heads, which follow heads.
    short = {"hidden size": "hidden", "feed-forward size": "ffn", "attention heads": "heads",
             "head dimension": "head dim", "layers": "layers"}  # fmt: skip
    named = [name for name in short if any(w[name][0] != w[name][1] for w in widths)]
    each = ["tokens per\nparameter"] if proposed.tokens is not None else []
    table = plain_table("", "parameters", "off", *(short[name] for name in named), *each, "exact", title=title)
    table.padding = (0, 1, 0, 0)  # the table is wide already
    for number, (p, sizes) in enumerate(zip(proposed.proposals, widths, strict=True), 1):
        cells = [f"{new} {new / old:.2g}x" if new != old else str(new) for old, new in map(sizes.__getitem__, named)]
        tokens = [f"{proposed.tokens / p.plan.parameters:.3g}"] if proposed.tokens is not None else []
        exact = "rounded" if p.rounds else "yes" if p.plan.keeps_function else "no"
        table.add_row(str(number), f"{p.plan.parameters:,}", f"{p.off:+.1%}", *cells, *tokens, exact)
    for column in table.columns:
        column.no_wrap = True
    legend = "best first: exact, widths alone, whole factors, at most 2x, then nearest\n"
    legend += "off: parameters, against the target"
    if proposed.tokens is not None:
        legend += f"; tokens per parameter: of {human_count(proposed.tokens)} tokens"
    notes = list(proposed.notes)
    if any(p.rounds for p in proposed.proposals):
        notes.append(
            "Rounded: the stored type cannot hold some factors exactly, which moves the logits about as much as "
            "computing in it."
        )
    warnings: dict[str, list[str]] = {}
    for number, p in enumerate(proposed.proposals, 1):
        for warning in p.warnings:
            warnings.setdefault(warning, []).append(str(number))
    parts: list[RenderableType] = [
        table,
        Text(legend, style="dim"),
        *(Text(f"- {note}", style="dim") for note in notes),
    ]
    for text, of in warnings.items():
        which = "all" if len(of) == len(proposed.proposals) else ", ".join(of)
        parts.append(Text(f"WARNING ({which}): {text}", style="bold yellow"))
    return Group(*parts)


def shown_shape(shape: tuple[int, ...]) -> str:
    """A tensor's shape, as 64 x 96."""
    return " x ".join(map(str, shape))


def proof_table(proof: Proof) -> RenderableType:
    """The verdict, its figures, and what failed."""
    s = proof.structure
    rounded = f"{s.coarse} tensor{'s' if s.coarse != 1 else ''} rounded"
    proved = f"PROVED up to rounding ({rounded})" if s.coarse else "PROVED"
    verdict = Text(*{
        "proved": (f"{proved}: the grown model computes the source's function", "bold green"),
        "changed": ("CHANGED: every weight is as planned, but this growth changes the function", "bold yellow"),
        "failed": ("FAILED: the grown model is not the one that was planned", "bold red"),
    }[proof.verdict])  # fmt: skip
    parts: list[RenderableType] = [
        verdict,
        Text(
            f"weights    {s.bit_equal} of {s.tensors} tensors collapse to the source bit for bit"
            + (f", {s.rounded} are rounded to their type ({listed(s.rounded_names)})" if s.rounded else "")
            + (f", {s.new_routers} are new routers, as the seed gives them" if s.new_routers else "")
            + (f", largest difference {s.difference:.1e}" if s.difference or s.rounded else "")
        ),
    ]
    behavior = proof.behavior
    if behavior and behavior.measured:
        table = plain_table("logits", behavior.rows, "error", "source", "allowed", "largest", "KL", "same\ntop")
        table.columns[0].no_wrap = True
        for m in behavior.measured:
            figures = [
                *(f"{x:.1e}" for x in (m.relative, m.source_error, m.tolerance, m.maximum)),
                f"{m.kl:.0e}",
                share(m.top1, m.positions),
            ]
            what = f"{m.what}, {_SHORT.get(m.dtype, m.dtype)}"
            table.add_row(what, str(m.positions), *figures, style=None if m.passed else "red")
        parts += [table, Text(_logits_legend(s, behavior), style="dim"), Text(_rows_compared(behavior))]
        for m in behavior.measured:
            if m.perplexity:
                source, grown = m.perplexity
                compared = f"source {source:.4f}, grown {grown:.4f}"
                parts.append(Text(f"perplexity, fp32, the same {m.predicted} tokens of real text: {compared}"))
    if behavior and behavior.layer_by_layer:
        parts.append(Text("both models were read layer by layer as they ran: they do not fit in memory", style="dim"))
    if behavior:
        parts += [Text(f"not measured: {reason}", style="dim") for reason in behavior.skipped]
    parts += [Text(printable(note, line=True), style="dim") for note in proof.notes]
    failures = proof.failures
    parts += [Text(f"- {printable(failure, line=True)}", style="red") for failure in failures[:20]]
    if len(failures) > 20:
        parts.append(Text(f"... and {len(failures) - 20} more", style="red"))
    return Group(*parts)


def _logits_legend(structure: Structure, behavior: Behavior) -> str:
    explained = f", that of computing and that of the {structure.coarse} weight tensors" if structure.coarse else ""
    return _LOGITS_LEGEND.format(explained=explained, rows=behavior.rows, choice=behavior.choice)


def _rows_compared(behavior: Behavior) -> str:
    """How many tokens, or sequences, in which type."""
    rows: dict[str, int] = {}
    for m in behavior.measured:
        rows[m.dtype] = rows.get(m.dtype, 0) + m.positions
    counts = " and ".join(f"{count} in {_SHORT.get(dtype, dtype)}" for dtype, count in rows.items())
    slow = _SHORT.get(behavior.slow, behavior.slow)
    text = f"{behavior.rows} compared: {counts}"
    return text + (f"; fewer in {slow}, in which this processor is slow" if slow else "")


def continuations(proof: Proof) -> RenderableType | None:
    """The same prompt continued greedily by both models; None if that was not run."""
    behavior = proof.behavior
    if behavior is None or not behavior.prompt:
        return None
    title = Text(f"Greedy continuation of “{behavior.prompt}”", style="bold")
    table = Table(title=title, title_justify="left", show_lines=False, expand=True)
    table.add_column("source", ratio=1)
    table.add_column("grown", ratio=1)
    # As Text: what a model writes must not be read as markup.
    table.add_row(Text(behavior.source_text.strip()), Text(behavior.grown_text.strip()))
    return table


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """A callback that shows one bar for each stage, with bytes per second where bytes are counted."""
    from rich.live import Live
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    from hyperclone.cli.display.times import Elapsed, LeftOrElapsed

    described = TextColumn("{task.description:<15}")
    bars = Progress(
        described, BarColumn(), DownloadColumn(), TransferSpeedColumn(), LeftOrElapsed(), console=console
    )  # fmt: skip
    count = TextColumn("{task.completed}/{task.total} steps")
    steps = Progress(described, BarColumn(), count, Elapsed(), console=console)
    live = Live(Group(bars, steps), console=console, refresh_per_second=8)
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if not live.is_started:  # not before, since it takes over what else is printed
            live.start()
        bar = steps if stage == "compare" else bars
        if stage not in tasks:
            tasks[stage] = bar.add_task(_STAGES.get(stage, stage), total=total)
        bar.update(tasks[stage], completed=done, total=total)

    try:
        yield show
    finally:
        live.stop()
        if tasks and not console.is_terminal:  # rich ends the line in terminals only
            console.line()
