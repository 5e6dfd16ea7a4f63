"""What people see of `hyperclone train --dry-run`: sizes, text, steps, rates, memory and disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.cli.display.training import (
    STREAMED,
    WEIGHTS,
    after_skipped,
    optimizer_name,
    source_text,
    starting_step,
)
from hyperclone.units import human_bytes, human_count, short_count

if TYPE_CHECKING:
    from hyperclone.training.dry_run import DryRun
    from hyperclone.training.dry_run import Text as TextOfRun

_NOTHING = Text("Nothing was written or trained.")
_UNTOKENIZED = "known after tokenizing, or with --tokens"


def dry_runs_view(small: DryRun, grown: DryRun) -> RenderableType:
    """A training that grows its model on the way: both stages, and what they take together."""
    tokens = (small.tokens or 0) + (grown.tokens or 0)
    before, after = (run.flops_per_token * (run.tokens or 0) for run in (small, grown))
    alone = grown.flops_per_token * tokens
    both = f"{human_count(tokens)} tokens, {before + after:.3g} FLOPs; the grown model alone on all tokens: {alone:.3g}"
    return Group(
        Text("Stage 1 of 2: the small model, from random weights"), Text(), _view(small), Text(),
        Text("Stage 2 of 2: the grown model"), Text(), _view(grown), Text(),
        Text(f"both stages: {both}"), _NOTHING,
    )  # fmt: skip


def dry_run_view(run: DryRun) -> RenderableType:
    """All of it, for any width."""
    return Group(_view(run), _NOTHING)


def _view(run: DryRun) -> RenderableType:
    training = run.training
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("model", f"{run.model}, {human_count(run.parameters)} parameters, weights {WEIGHTS[run.weights]}"),
        ("text", _text(run.text, streamed=training.streaming)),
        *(("mixture", source_text(source, streamed=training.streaming)) for source in run.mixture),
        *([("held out", _held_out(run, run.held_out))] if run.held_out else []),
        ("batch", _batch(run)),
        ("steps", _steps(run)),
        ("schedule", _schedule(run)),
        ("optimizer", _optimizer(run)),
        ("measuring", _measuring(run)),
        ("computing", _computing(run)),
        ("FLOPs", _flops(run)),
        ("memory", _memory(run)),
        ("disk", _disk(run)),
        ("output", f"{training.output}" + (f"; {starting_step(training, run.start)}" if run.start else "")),
        *([("upload", f"{training.push_to_hub} on the Hub, private if it is new")] if training.push_to_hub else []),
    ]
    for label, value in rows:
        table.add_row(label, Text(value))
    return Group(table, Text(), _groups(run))


def _text(text: TextOfRun, *, streamed: bool = False) -> str:
    where = f"{text.files:,} file{'s' * (text.files != 1)}, {human_bytes(text.nbytes)}" if text.files else "on the Hub"
    if text.tokens is None:
        return f"{where}; {STREAMED if streamed else 'not tokenized yet'}"
    return f"{where}; {text.documents:,} documents, {human_count(text.tokens)} tokens"


def _held_out(run: DryRun, text: TextOfRun) -> str:
    if run.training.eval_data:
        return _text(text)
    of_text = f"{run.training.held_out:.3g} of the documents"
    return of_text if text.tokens is None else f"{of_text}: {text.documents:,}, {human_count(text.tokens)} tokens"


def _batch(run: DryRun) -> str:
    budget, processes = run.budget, f"{run.processes} process{'es' * (run.processes > 1)}"
    shares = f"{processes} x {budget.accumulation} x {budget.micro_batch} windows"
    return f"{budget.batch_tokens:,} tokens: {budget.windows} windows of {budget.seq_len:,} = {shares}"


def _steps(run: DryRun) -> str:
    if run.steps is None or run.tokens is None:
        return f"{'until the first source is used up' if run.mixture else 'one epoch'}: {_UNTOKENIZED}"
    of_text = "" if run.training.streaming else "; epochs are known after tokenizing"
    if run.windows and run.mixture:
        of_text = "" if run.training.tokens is not None else ", until the first source is used up"
    elif run.windows:
        of_text = f", {run.steps * run.budget.windows / run.windows:.3g} epochs of {run.windows:,} windows"
    each = f", {run.tokens / run.parameters:.3g} for each parameter"
    skipped = after_skipped(run.training)
    return f"{run.steps:,} step{'s' * (run.steps != 1)}, {human_count(run.tokens)} tokens{each}{of_text}{skipped}"


def _schedule(run: DryRun) -> str:
    training = run.training
    warmup = f"{training.warmup:.3g} of the steps" if run.warmup is None else f"{run.warmup:,} steps"
    end = "" if training.schedule == "constant" else f", to {training.min_lr:g} of the peak"
    decay = f" over the last {training.decay:.3g} of the steps" if training.schedule == "wsd" else ""
    return f"{training.schedule}, warm-up {warmup}{end}{decay}"


def _optimizer(run: DryRun) -> str:
    training = run.training
    rates = f"lr {training.lr:g}, weight decay {training.weight_decay:g}"
    differences = "" if run.difference_lr is None else f", differences between copies {run.difference_lr:.3g}"
    momentum = f", momentum {training.momentum:g}" if any(g.trained_by == "muon" for g in run.groups) else ""
    clip = f", gradients clipped to {training.max_grad_norm:g}" if training.max_grad_norm else ""
    moments = "; starts from grown moments" if run.grown_moments else ""
    return (
        f"{optimizer_name(training, run.weights)}: {rates}{differences}, betas {training.beta1:g} and "
        f"{training.beta2:g}{momentum}{clip}{moments}"
    )


def _measuring(run: DryRun) -> str:
    from hyperclone.training.budget import intervals

    if run.steps is None:
        return f"logs, evaluations and checkpoints: {_UNTOKENIZED}"
    every = intervals(run.training, run.steps)
    evaluated = f", evaluates every {every.evaluate:,}" if run.held_out else ""
    return f"logs every {every.log:,} steps{evaluated}, saves every {every.save:,}"


def _computing(run: DryRun) -> str:
    training = run.training
    parts = [
        run.device, run.precision, *(["compiled"] if run.compiled else []), f"attention {training.attention}",
        f"documents {training.documents}", *(["gradient checkpointing"] if training.gradient_checkpointing else []),
        *([f"sharding {training.sharding}"] if training.sharding != "none" else []),
    ]  # fmt: skip
    alone = training.sharding != "none" and run.processes == 1
    return ", ".join(parts) + ("; for 8 processes: WORLD_SIZE=8 hyperclone train ... --dry-run" if alone else "")


def _flops(run: DryRun) -> str:
    each = f"{short_count(run.flops_per_token)} for a token"
    return each if run.tokens is None else f"{each}, {run.tokens * run.flops_per_token:.3g} in all"


def _memory(run: DryRun) -> str:
    memory = run.memory
    named = {
        "weights": memory.weights, "gradients": memory.gradients, "optimizer state": memory.optimizer_state,
        "whole weights": memory.whole_weights, "buckets of DDP": memory.buckets,
    }  # fmt: skip
    parts = ", ".join(f"{name} {human_bytes(nbytes)}" for name, nbytes in named.items() if nbytes)
    each = " for each process" if run.processes > 1 else ""
    return f"{human_bytes(memory.total)}{each} ({parts}), and what activations and a step's scratch take"


def _disk(run: DryRun) -> str:
    kept = run.training.keep
    keeps = f"{kept} are kept, and one more while it is written" if kept else "all are kept"
    return f"{human_bytes(run.checkpoint)} for a checkpoint ({keeps}); {human_bytes(run.output)} for the trained model"


def _groups(run: DryRun) -> RenderableType:
    several = len({group.trained_by for group in run.groups}) > 1
    table = Table(box=None, padding=(0, 1 if several else 2, 0, 0), header_style="dim")
    columns = ("group", *(("by",) if several else ()), "tensors", "parameters", "lr", "decay", "eps")
    for column in columns:
        table.add_column(column, justify="left" if column in ("group", "by") else "right", no_wrap=column != "group")
    for group in run.groups:
        by = ("Muon" if group.trained_by == "muon" else "AdamW",) if several else ()
        table.add_row(
            Text(group.name), *by, f"{group.tensors:,}", human_count(group.parameters), f"{group.lr:.3g}",
            f"{group.weight_decay:.3g}", f"{group.eps:.3g}",
        )  # fmt: skip
    return table
