"""plan, grow, verify, collapse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperclone.cli.app import app
from hyperclone.cli.arguments import (
    FamilyFile,
    Json,
    Kind,
    Revision,
    ShardSize,
    Source,
    Threads,
    make_console,
    show_plan,
    show_proof,
)
from hyperclone.cli.grouped_help import GroupedCommand
from hyperclone.cli.options import takes
from hyperclone.planning.growth import Growth
from hyperclone.units import human_bytes


@app.command(
    cls=GroupedCommand,
    epilog="Example: hyperclone plan HuggingFaceTB/SmolLM2-135M --width 2  |  or --params 400M --tokens 8B",
)
@takes(Growth)
def plan(
    src: Source,
    growth: Growth,
    params: Annotated[str | None, typer.Option(help="Propose sizes near this many parameters: 1.3B, 350M, ...")] = None,
    multiple_of: Annotated[
        int | None, typer.Option(help="With --params: what new sizes are multiples of [64].")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens you mean to train the grown model on: 26B, ...")] = None,
    shard_size: ShardSize = "5GB",
    revision: Revision = None,
    family: FamilyFile = None,
    as_json: Json = False,
) -> None:
    """Show what growing SRC would give, or propose sizes (--params). Reads headers only, writes nothing."""
    if params is None and multiple_of is None:
        show_plan(src, growth, shard_size, revision, family, tokens=tokens, as_json=as_json, tensors=True)
        return
    from hyperclone.cli.display import plan_and_proof
    from hyperclone.planning import proposals

    made = proposals.propose(
        src, params, request=growth, multiple_of=multiple_of, tokens=tokens, shard_size=shard_size,
        revision=revision, family=family,
    )  # fmt: skip
    if as_json:
        print(json.dumps(made.summary(), indent=2))
        return
    make_console().print(plan_and_proof.proposals_table(made), highlight=False)
    for number, proposal in enumerate(made.proposals, 1):
        print(f"{number}  {made.command(proposal)}")  # in one line, whatever the width: it is there to be copied


@app.command(
    cls=GroupedCommand,
    epilog="Example: hyperclone grow HuggingFaceTB/SmolLM2-135M smollm2-480m --width 2"
    "  |  as the paper does OLMo: --hidden 2 --heads 2 --ffn 1x",
)
@takes(Growth)
def grow(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Directory to create.")],
    growth: Growth,
    shard_size: ShardSize = "5GB",
    threads: Threads = None,
    proof: Kind = "full",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a directory that hyperclone made.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    revision: Revision = None,
    family: FamilyFile = None,
    optimizer_state: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPT", help="Also grow the optimizer state in this Trainer or torch distributed checkpoint."
        ),
    ] = None,
    moments: Annotated[
        str,
        typer.Option(help="With --optimizer-state: copy (to every copy), first-copy (only to the first), or reset."),
    ] = "copy",
) -> None:
    """Grow SRC into DST and prove from the files that the function is the same.

    DST appears complete or not at all; after an interruption, the same command continues.
    """
    from hyperclone.cli.display import plan_and_proof
    from hyperclone.conversion import grow as growing

    show_plan(src, growth, shard_size, revision, family, as_json=False, tensors=dry_run)
    if dry_run:
        return
    with plan_and_proof.progress_bars(make_console(error=True)) as progress:
        done = growing.grow(
            src, dst, growth, shard_size=shard_size, threads=threads, overwrite=overwrite, proof=proof,
            revision=revision, family=family, optimizer_state=optimizer_state, moments=moments,
            progress=progress,
        )  # fmt: skip
    if done.proof is not None:
        show_proof(done.proof)
    else:
        print("No proof was run (--proof none).")
    if done.optimizer_state is not None:
        print(f"Optimizer state: {done.optimizer_state.sentence}")
    nbytes = done.plan.nbytes + (done.optimizer_state.nbytes if done.optimizer_state else 0)
    print(f"Wrote {human_bytes(nbytes)} to {dst}")


@app.command(epilog="Example: hyperclone verify HuggingFaceTB/SmolLM2-135M smollm2-480m")
def verify(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The grown directory.")],
    proof: Kind = "full",
    threads: Threads = None,
    revision: Revision = None,
    family: FamilyFile = None,
    as_json: Json = False,
) -> None:
    """Prove that DST computes the function of SRC, from the files on disk. Exit code 1 if it does not."""
    from hyperclone.cli.display import plan_and_proof
    from hyperclone.conversion import verify as verifying

    with plan_and_proof.progress_bars(make_console(error=True)) as progress:
        result = verifying.verify(
            src, dst, proof=proof, threads=threads, revision=revision, family=family, progress=progress
        )
    if as_json:
        print(json.dumps(result.summary(), indent=2))
    else:
        show_proof(result)
    if not result.passed:
        raise typer.Exit(1)


@app.command(epilog="Example: hyperclone collapse smollm2-480m smollm2-135m-again")
def collapse(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A grown directory, not trained since.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to create.")],
    shard_size: ShardSize = "5GB",
    threads: Threads = None,
) -> None:
    """Write the model that DST was grown from."""
    from hyperclone.cli.display import plan_and_proof
    from hyperclone.conversion import collapse as collapsing

    with plan_and_proof.progress_bars(make_console(error=True)) as progress:
        done = collapsing.collapse(dst, out, shard_size=shard_size, threads=threads, progress=progress)
    verdict = {
        True: "every tensor has the hash that the receipt recorded of the source",
        False: "the source up to rounding, not bit for bit (Gaussian noise, or rounded factors)",
        None: "not compared with the source's hashes (none recorded, or the type was converted)",
    }[done.exact]
    print(f"Wrote {done.tensors} tensors to {out}: {verdict}")
