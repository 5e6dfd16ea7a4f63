"""The commands families and family draft."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hyperclone.cli.app import app, family_app
from hyperclone.cli.arguments import (
    Json,
    make_console,
    say,
    show_whole,
)
from hyperclone.errors import DestinationError, OptionError

_SHOWN = 4  # failures of a draft; its file has all


@app.command(epilog="Example: hyperclone families gemma3  |  hyperclone families ./my-model  |  --json")
def families(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="What is known about this one: a model directory, config.json, model type, or Hub id.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/families.md.")] = False,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="List every causal language model of the installed transformers, and models with a text model in "
            "them, with the family file that grows it, or why none does.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the supported architectures, and which of their sizes can grow; or what is known about MODEL."""
    from hyperclone.architectures import support_table
    from hyperclone.cli.display.families import coverage_table, known_table
    from hyperclone.cli.display.families import table as families_table

    if model is not None:
        from hyperclone.planning.known import known

        if markdown or coverage:
            raise OptionError("these options list all models", found="--markdown" if markdown else "--coverage",
                              cure=f"omit it, or {model}")  # fmt: skip
        about = known(model)
        if as_json:
            print(json.dumps(about.summary(), indent=2))
        else:
            show_whole(lambda _: known_table(about))
    elif coverage:
        from hyperclone.hf.coverage import coverage as covered

        rows = covered()
        if as_json:
            print(json.dumps([asdict(row) for row in rows], indent=2))
        else:
            show_whole(lambda _: coverage_table(rows))
    elif markdown:
        say(support_table.markdown().rstrip("\n"))
    elif as_json:
        print(json.dumps(support_table.summary(), indent=2))
    else:
        show_whole(lambda width: families_table(width=width))


@family_app.command(epilog="Example: hyperclone family draft SRC -o my.toml; hyperclone grow SRC DST --family my.toml")
def draft(
    src: Annotated[str, typer.Argument(metavar="SRC", help="Model directory, config.json, or Hub id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="TOML", help="File to write; printed by default.")
    ] = None,
) -> None:
    """Draft a family file for an unknown architecture, and prove it on a tiny random instance.

    Reads the config only. Every guess is marked in the file. Exit code 1 if the draft could not be proved.
    """
    from hyperclone.drafting import draft

    if output is not None and output.exists():
        raise DestinationError("this file exists already", file=output, cure="choose another name, or remove it")
    with make_console(error=True).status("Building the model at several sizes, and trying candidate layouts"):
        drafted = draft.draft(src)
    if output is None:
        say(drafted.text.rstrip("\n"))
    else:
        try:
            output.write_text(drafted.text, "utf-8")
        except OSError as error:
            raise DestinationError("the file cannot be written", file=output, found=error.strerror) from None
        say(f"Wrote {output}")
    lines = [f"PROVED on a tiny random instance. Equal logits for: {', '.join(drafted.passed)}."]
    if drafted.guesses:
        lines.append(f"Lines marked as guesses: {drafted.guesses}; the proof confirms them.")
    if not drafted.proved:
        first, others = drafted.failures[:_SHOWN], len(drafted.failures) - _SHOWN
        lines = ["NOT PROVED: " + "; ".join(first) + (f"; and {others} more, which the file lists" * (others > 0))]
        lines += draft.HINTS if drafted.results else []  # else nothing was tried, since some lines are missing
    elif output is not None:
        lines.append(f"Next: hyperclone plan {src} --width 2 --family {output}")
    say("\n".join(lines), error=output is None)
    if not drafted.proved:
        raise typer.Exit(1)
