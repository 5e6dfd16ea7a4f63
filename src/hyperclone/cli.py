"""The command line: options and exit codes. 0 done, 1 the proof failed, 2 what was asked is impossible, 3 a bug."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperclone import __version__
from hyperclone.errors import HypercloneError
from hyperclone.growth import Growth
from hyperclone.options import takes_growth

app = typer.Typer(
    name="hyperclone",
    help="Grow a trained language model into a wider one that computes the same function, and prove it.",
    epilog="Start with: hyperclone plan SRC --width 2",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[str, typer.Argument(metavar="SRC", help="Model directory (safetensors), or Hub id.")]
ShardSize = Annotated[str, typer.Option(help="Largest weight file.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Readers and writers; the bytes do not depend on it.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Kind = Annotated[
    str, typer.Option("--proof", help="full (weights and logits), structural (weights; any size), or none.")
]


@app.command(epilog="Example: hyperclone plan HuggingFaceTB/SmolLM2-135M --width 2")
@takes_growth
def plan(
    src: Source,
    growth: Growth,
    shard_size: ShardSize = "5GB",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show what growing SRC would give. Reads headers only, writes nothing."""
    _show_plan(src, growth, shard_size, revision, as_json=as_json, tensors=True)


@app.command(
    epilog="Example: hyperclone grow HuggingFaceTB/SmolLM2-135M smollm2-480m --width 2"
    "  |  as the paper does OLMo: --hidden 2 --heads 2 --ffn 1x"
)
@takes_growth
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
) -> None:
    """Grow SRC into DST and prove from the files that the function is the same.

    DST appears complete or not at all; after an interruption, the same command continues.
    """
    from hyperclone import display, growing

    _show_plan(src, growth, shard_size, revision, as_json=False, tensors=dry_run)
    if dry_run:
        return
    with display.progress_bars(_console(error=True)) as progress:
        done = growing.grow(
            src, dst, growth, shard_size=shard_size, threads=threads, overwrite=overwrite, proof=proof,
            revision=revision, progress=progress,
        )  # fmt: skip
    if done.proof is not None:
        _show_proof(done.proof)
    else:
        print("No proof was run (--proof none).")
    print(f"Wrote {display.human_bytes(done.plan.nbytes)} to {dst}")


@app.command(epilog="Example: hyperclone verify HuggingFaceTB/SmolLM2-135M smollm2-480m")
def verify(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The grown directory.")],
    proof: Kind = "full",
    threads: Threads = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Prove that DST computes the function of SRC, from the files on disk. Exit code 1 if it does not."""
    from hyperclone import display, proving

    with display.progress_bars(_console(error=True)) as progress:
        result = proving.verify(src, dst, proof=proof, threads=threads, revision=revision, progress=progress)
    if as_json:
        print(json.dumps(result.summary(), indent=2))
    else:
        _show_proof(result)
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
    from hyperclone import collapsing, display

    with display.progress_bars(_console(error=True)) as progress:
        done = collapsing.collapse(dst, out, shard_size=shard_size, threads=threads, progress=progress)
    verdict = {
        True: "every tensor has the hash that the receipt recorded of the source",
        False: "the source up to rounding, not bit for bit (Gaussian noise, or rounded factors)",
        None: "not compared with the source's hashes (none recorded, or the type was converted)",
    }[done.exact]
    print(f"Wrote {done.tensors} tensors to {out}: {verdict}")


def _show_plan(
    src: str, growth: Growth, shard_size: str, revision: str | None, *, as_json: bool, tensors: bool
) -> None:
    from hyperclone import growing

    made = growing.plan(src, growth, shard_size=shard_size, revision=revision)
    if as_json:
        print(json.dumps(made.summary(), indent=2))
        return
    from hyperclone import display

    _console().print(display.plan_table(made, tensors=tensors), highlight=False)


def _show_proof(proof: Any) -> None:
    from hyperclone import display

    console = _console()
    console.print(display.proof_table(proof), highlight=False)
    if (texts := display.continuations(proof)) is not None:
        console.print(texts, highlight=False)


def _console(*, error: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=error, soft_wrap=False)


def _version(value: bool) -> None:
    if value:
        print(f"hyperclone {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors of the user's become one message and exit code 2."""
    from hyperclone import growing

    # Threads of OpenMP that spin while they wait make a busy machine many times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except growing.ProofFailed as error:
        _show_proof(error.proof)
        print(f"{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except HypercloneError as error:
        print(f"hyperclone: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        print("\nInterrupted. Nothing was damaged; the same command begins again, or goes on where it stopped.",
              file=sys.stderr)  # fmt: skip
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; say nothing more
        raise SystemExit(0) from None
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # what the option parser did not understand
            error.show()
            raise SystemExit(error.exit_code) from None
        traceback.print_exc()
        print("hyperclone: this is a bug of ours, please report it with the lines above", file=sys.stderr)
        raise SystemExit(3) from None
    raise SystemExit(code or 0)
