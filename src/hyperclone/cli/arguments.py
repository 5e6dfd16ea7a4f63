"""What several commands share: annotated arguments and options, the console, and the plan and the proof on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperclone.planning.growth import Growth

if TYPE_CHECKING:
    from rich.console import Console

Source = Annotated[str, typer.Argument(metavar="SRC", help="Model directory (safetensors), or Hub id.")]
ShardSize = Annotated[str, typer.Option(help="Largest weight file.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Readers and writers; the bytes do not depend on it.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
FamilyFile = Annotated[
    str | None, typer.Option("--family", metavar="TOML", help="A family file of your own (`hyperclone family draft`).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Kind = Annotated[
    str, typer.Option("--proof", help="full (weights and logits), structural (weights; any size), or none.")
]


def make_console(*, error: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=error, soft_wrap=False)


def show_plan(
    src: str, growth: Growth, shard_size: str, revision: str | None, family: str | None, *,
    tokens: str | None = None, as_json: bool, tensors: bool,
) -> None:  # fmt: skip
    from hyperclone.conversion import grow as growing

    made = growing.plan(src, growth, shard_size=shard_size, revision=revision, tokens=tokens, family=family)
    if as_json:
        print(json.dumps(made.summary(), indent=2))
        return
    from hyperclone.cli.display import plan_and_proof

    make_console().print(plan_and_proof.plan_table(made, tensors=tensors), highlight=False)


def show_proof(proof: Any) -> None:
    from hyperclone.cli.display import plan_and_proof

    console = make_console()
    console.print(plan_and_proof.proof_table(proof), highlight=False)
    if (texts := plan_and_proof.continuations(proof)) is not None:
        console.print(texts, highlight=False)
