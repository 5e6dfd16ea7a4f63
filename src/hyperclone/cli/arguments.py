"""What several commands share: annotated arguments and options, the console, and the plan and the proof on it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hyperclone.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console, RenderableType

    from hyperclone.planning.plan import Plan
    from hyperclone.proof.proof import Proof

Source = Annotated[str, typer.Argument(metavar="SRC", help="Model directory (safetensors), or Hub id.")]
ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file: 5GB, 500MB, ...")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Threads that read and write; the output does not depend on it [one for each processor, 2 to 8]."
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, where a Hub id is given [its main branch].")]
FamilyFile = Annotated[
    str | None, typer.Option("--family", metavar="TOML", help="A family file of your own (`hyperclone family draft`).")
]
TextModel = Annotated[
    bool,
    typer.Option(
        "--text-model", help="Of a model that also sees images, grow the text model on its own and leave out the rest."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ProofOption = Annotated[
    str,
    typer.Option(
        "--proof",
        metavar="full|structural|none",
        help="What is proved: full (weights and logits), structural (weights only, which works at any size), or none.",
    ),
]
ProofToRepeat = Annotated[
    str,
    typer.Option(
        "--proof",
        metavar="full|structural",
        help="What is proved: full (weights and logits), or structural (weights only, which works at any size).",
    ),
]


def make_console(*, error: bool = False) -> Console:
    """The terminal; its standard error where `error`."""
    from hyperclone.cli.terminal import Terminal

    return Terminal(stderr=error, soft_wrap=False)


def show_whole(table: Callable[[int], RenderableType]) -> None:
    """Print a table that is made for a width; in a pipe or a file every row is one line, and no name is cut."""
    from hyperclone.cli.terminal import UNBOUNDED

    console = make_console()
    if console.is_terminal:
        console.print(table(console.width), highlight=False)
        return
    console.width = UNBOUNDED
    with console.capture() as captured:
        console.print(table(console.width), highlight=False)
    say("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say_error(error: object) -> None:
    """Print an error; on a terminal, in lines of its width with details below each other."""
    from hyperclone.cli.terminal import wrapped

    text = printable(f"hyperclone: {error}")
    if sys.stderr.isatty():
        text = wrapped(text, width=make_console(error=True).width)
    print(text, file=sys.stderr)


def say(text: object, *, error: bool = False) -> None:
    """Print lines without layout, on standard error where `error`."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout)


def show_plan(plan: Plan, *, tensors: bool) -> None:
    """Print a plan; `tensors`: with a table of them."""
    from hyperclone.cli.display import plan_and_proof

    make_console().print(plan_and_proof.plan_table(plan, tensors=tensors), highlight=False)


def show_new_parents(target: Path) -> None:
    """Say which directories above a target do not exist and are made with it: a misspelt one shows."""
    from hyperclone.io.destination import missing_parents
    from hyperclone.io.files import user_path

    if parents := missing_parents(user_path(target)):
        say(f"Not there yet, and made with {target.name}: {', '.join(map(str, parents))}")


def show_proof(proof: Proof) -> None:
    """Print a proof, and the two continuations where they were made."""
    from hyperclone.cli.display import plan_and_proof

    console = make_console()
    console.print(plan_and_proof.proof_table(proof), highlight=False)
    if (texts := plan_and_proof.continuations(proof)) is not None:
        console.print(texts, highlight=False)
