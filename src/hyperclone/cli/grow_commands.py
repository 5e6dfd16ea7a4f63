"""The commands plan, grow, verify and collapse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hyperclone.cli.app import app
from hyperclone.cli.arguments import (
    FamilyFile,
    Json,
    ProofOption,
    ProofToRepeat,
    Revision,
    ShardSize,
    Source,
    TextModel,
    Threads,
    make_console,
    say,
    show_new_parents,
    show_plan,
    show_proof,
)
from hyperclone.cli.grouped_help import GroupedCommand
from hyperclone.cli.options import takes
from hyperclone.cli.stopping import says_what_is_kept
from hyperclone.conversion import plan as planning
from hyperclone.io import hub_upload
from hyperclone.planning.growth import Growth
from hyperclone.units import human_bytes

if TYPE_CHECKING:  # their words are checked where they are used
    from hyperclone.optimizer_state.moments import Treatment
    from hyperclone.planning.plan import Plan
    from hyperclone.proof.proof import ProofKind, ProofToRun


@app.command(
    cls=GroupedCommand,
    epilog="Example: hyperclone plan HuggingFaceTB/SmolLM2-135M --width 2  |  or --params 400M --tokens 8B",
)
@takes(Growth)
def plan(
    src: Source,
    growth: Growth,
    params: Annotated[
        str | None,
        typer.Option(metavar="COUNT", help="Propose sizes near this many parameters: 1.3B, 350M, ..."),
    ] = None,
    multiple_of: Annotated[
        int | None, typer.Option(help="With --params: new sizes are multiples of this [64].")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Tokens you mean to train the grown model on, such as 26B: shows how many those are for each "
            "parameter, with steps, GPU hours, memory and disk, and warns where they are so many that growing loses "
            "its advantage.",
        ),
    ] = None,
    shard_size: ShardSize = "5GB",
    revision: Revision = None,
    family: FamilyFile = None,
    text_model: TextModel = False,
    as_json: Json = False,
) -> None:
    """Show what growing SRC would give, or propose sizes (--params). Reads headers only, writes nothing."""
    if params is None and multiple_of is None:
        planned = planning.plan(
            src, growth, shard_size=shard_size, revision=revision, tokens=tokens, family=family, text_model=text_model
        )
        training = None
        if tokens is not None:
            from hyperclone.training.estimate import estimate

            training = estimate(planned, tokens)
        if as_json:
            more = {} if training is None else {"training": training.summary()}
            print(json.dumps({**planned.summary(), **more}, indent=2))
        else:
            show_plan(planned, tensors=True)
            if training is not None:
                make_console().print(training.text(), highlight=False, markup=False)
        return
    from hyperclone.cli.display import plan_and_proof
    from hyperclone.planning import proposals

    proposed = proposals.propose(
        src, params, request=growth, multiple_of=multiple_of, tokens=tokens, shard_size=shard_size,
        revision=revision, family=family, text_model=text_model,
    )  # fmt: skip
    if as_json:
        print(json.dumps(proposed.summary(), indent=2))
        return
    make_console().print(plan_and_proof.proposals_table(proposed), highlight=False)
    for number, proposal in enumerate(proposed.proposals, 1):
        say(f"{number}  {proposed.command(proposal)}")  # on one line, whatever the width, so that it can be copied


@app.command(
    cls=GroupedCommand,
    epilog="Example: hyperclone grow HuggingFaceTB/SmolLM2-135M smollm2-480m --width 2"
    "  |  as the paper does OLMo: --hidden 2 --heads 2 --ffn 1x",
)
@takes(Growth)
def grow(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Directory to create, with those above it.")],
    growth: Growth,
    shard_size: ShardSize = "5GB",
    threads: Threads = None,
    proof: ProofOption = "full",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a directory that hyperclone made.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    revision: Revision = None,
    family: FamilyFile = None,
    text_model: TextModel = False,
    optimizer_state: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPT", help="Also grow the optimizer state in this Trainer or torch distributed checkpoint."
        ),
    ] = None,
    moments: Annotated[
        str,
        typer.Option(
            metavar="copy|first-copy|reset",
            help="With --optimizer-state: copy (every copy gets its source's moments), first-copy (only the first; "
            "the others start at zero), or reset (none does).",
        ),
    ] = "copy",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Upload DST to the Hub at the end: NAMESPACE/MODEL, or MODEL for your own; private if it is new.",
        ),
    ] = None,
) -> None:
    """Grow SRC into DST and prove from the files that the function is the same.

    DST appears complete or not at all. After an interruption, rerun the same command to resume.
    """
    repo = None if push_to_hub is None else hub_upload.check(push_to_hub)
    if dry_run:
        planned = planning.plan(
            src, growth, shard_size=shard_size, revision=revision, family=family, text_model=text_model
        )
        show_plan(planned, tensors=True)
        show_new_parents(dst)
        return
    from hyperclone.cli.display import plan_and_proof
    from hyperclone.conversion import grow as growing

    def on_plan(planned: Plan) -> None:
        show_plan(planned, tensors=False)
        show_new_parents(dst)

    with says_what_is_kept(dst), plan_and_proof.progress_bars(make_console(error=True)) as progress:
        grown = growing.grow(
            src, dst, growth, shard_size=shard_size, threads=threads, overwrite=overwrite,
            proof=cast("ProofKind", proof), revision=revision, family=family, optimizer_state=optimizer_state,
            moments=cast("Treatment", moments), text_model=text_model,
            on_plan=on_plan, progress=progress,
        )  # fmt: skip
    if grown.proof is not None:
        show_proof(grown.proof)
    else:
        say("No proof was run (--proof none).")
    if grown.optimizer_state is not None:
        say(f"Optimizer state: {grown.optimizer_state.sentence}")
    nbytes = grown.plan.nbytes + (grown.optimizer_state.nbytes if grown.optimizer_state else 0)
    say(f"Wrote {human_bytes(nbytes)} to {dst}")
    if repo is not None:
        files = [file.relative_to(dst).as_posix() for file in sorted(dst.rglob("*")) if file.is_file()]
        say(f"Uploaded to {hub_upload.upload(repo, dst, files)}")


@app.command(epilog="Example: hyperclone verify HuggingFaceTB/SmolLM2-135M smollm2-480m")
def verify(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The grown directory.")],
    proof: ProofToRepeat = "full",
    threads: Threads = None,
    revision: Revision = None,
    family: FamilyFile = None,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed", help="Exit with 0 where the growth was to change the function (stacked layers)."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove that DST computes the function of SRC, from the files on disk. Exit code 1 if it does not."""
    from hyperclone.cli.display import plan_and_proof
    from hyperclone.conversion import verify as verifying

    with plan_and_proof.progress_bars(make_console(error=True)) as progress:
        result = verifying.verify(
            src,
            dst,
            proof=cast("ProofToRun", proof),
            threads=threads,
            revision=revision,
            family=family,
            progress=progress,
        )
    if as_json:
        print(json.dumps(result.summary(), indent=2))
    else:
        show_proof(result)
    if not (result.passed or (allow_changed and result.verdict == "changed")):
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

    show_new_parents(out)
    with says_what_is_kept(out), plan_and_proof.progress_bars(make_console(error=True)) as progress:
        collapsed = collapsing.collapse(dst, out, shard_size=shard_size, threads=threads, progress=progress)
    verdict = {
        True: "every tensor has the hash that the receipt recorded for the source",
        False: f"the source up to rounding, not bit for bit: {collapsed.reason}",
        None: f"not compared with the source's hashes: {collapsed.reason}",
    }[collapsed.exact]
    say(f"Wrote {collapsed.tensors} tensors to {out}: {verdict}")
