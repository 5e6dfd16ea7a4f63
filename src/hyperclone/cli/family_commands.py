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
)
from hyperclone.errors import DestinationError

_SHOWN = 4  # failures of a draft; its file has all


@app.command(epilog="Example: hyperclone families --json")
def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/families.md.")] = False,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="List every causal language model of the installed transformers, with the family file that grows it, "
            "or why none does.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the supported architectures, and which of their sizes can grow."""
    from hyperclone.architectures import support_table
    from hyperclone.cli.display.families import coverage_table
    from hyperclone.cli.display.families import table as families_table

    if coverage:
        from hyperclone.hf.coverage import coverage as covered

        rows = covered()
        if as_json:
            print(json.dumps([asdict(row) for row in rows], indent=2))
        else:
            console = make_console()
            console.print(coverage_table(rows), highlight=False)
    elif markdown:
        say(support_table.markdown().rstrip("\n"))
    elif as_json:
        print(json.dumps(support_table.summary(), indent=2))
    else:
        console = make_console()
        console.print(families_table(width=console.width), highlight=False)


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
