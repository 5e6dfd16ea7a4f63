"""What several commands share: annotated arguments and options, the console, and the plan and the proof on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hyperclone.planning.plan import Plan
    from hyperclone.proof.proof import Proof

Source = Annotated[str, typer.Argument(metavar="SRC", help="Model directory (safetensors), or Hub id.")]
ShardSize = Annotated[str, typer.Option(help="Largest weight file.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Readers and writers; the output does not depend on it.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
FamilyFile = Annotated[
    str | None, typer.Option("--family", metavar="TOML", help="A family file of your own (`hyperclone family draft`).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Kind = Annotated[
    str, typer.Option("--proof", help="full (weights and logits), structural (weights only; at any size), or none.")
]


def make_console(*, error: bool = False) -> Console:
    """The terminal; its standard error where `error`."""
    from rich.console import Console

    return Console(stderr=error, soft_wrap=False)


def show_plan(plan: Plan, *, tensors: bool) -> None:
    """Print a plan; `tensors`: with a table of them."""
    from hyperclone.cli.display import plan_and_proof

    make_console().print(plan_and_proof.plan_table(plan, tensors=tensors), highlight=False)


def show_proof(proof: Proof) -> None:
    """Print a proof, and the two continuations where they were made."""
    from hyperclone.cli.display import plan_and_proof

    console = make_console()
    console.print(plan_and_proof.proof_table(proof), highlight=False)
    if (texts := plan_and_proof.continuations(proof)) is not None:
        console.print(texts, highlight=False)
