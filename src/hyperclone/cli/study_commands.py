"""study, report, demo."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hyperclone import units
from hyperclone.cli.app import app
from hyperclone.cli.arguments import (
    make_console,
    say,
    show_plan,
    show_proof,
)


@app.command(epilog="Example: hyperclone study my.toml --jobs 2; hyperclone report my.runs")
def study(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="The study file: what to compare (docs/study.md).")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="For runs and results [STUDY.runs].")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time [one for each GPU, or one].")] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of each run [torch's own choice; with several jobs the cores, shared evenly]."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Train this source only, again if its weights were deleted, and stop; of the results, only "
            "sources.csv changes.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be run, and what has finished, and stop.")
    ] = False,
) -> None:
    """Train several models (arms), each with several seeds, on the same data, and compare them.

    Finished runs are reused, interrupted ones resumed; a failed one does not stop the others. Recorded results stay as
    they are while text or model is missing on this machine; those of another text, model or setting become former.
    Exit code 1: some failed.
    """
    from hyperclone.cli.display import study as study_display
    from hyperclone.study import run as studies

    if dry_run:
        asked = studies.read(file)
        before = studies.finished(asked, output=output)
        make_console().print(study_display.outlook(asked, before), highlight=False)
        if before is not None and (changed := study_display.compared(before.compared)):
            say(f"\n{changed}", error=True)
        for obstacle in study_display.obstacles(before):
            say(f"\nWhat has finished is not known for some arms: {obstacle}", error=True)
        return
    with study_display.StudyView(make_console(error=True)) as view:
        if source is not None:
            record = studies.remake(file, source, output=output, threads=threads, on_event=view)
        else:
            done = studies.run(file, output=output, jobs=jobs, threads=threads, on_event=view)
    if source is not None:
        loss = "" if record.loss is None else f", held-out loss {record.loss:.4f}"
        say(f"Source {source}: {units.human_count(record.parameters)} parameters{loss}")
        return
    make_console().print(study_display.table(done, done.speedups), highlight=False)
    say(f"Results in {done.output}; `hyperclone report {done.output}` draws them.")
    states = [run.status for run in done.runs]
    if "interrupted" in states:
        say("Interrupted: rerun the same command to resume.")
        raise typer.Exit(130)
    if "failed" in states:
        raise typer.Exit(1)


@app.command(epilog="Example: hyperclone report my.runs -o my.html --figures figures/")
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
    from hyperclone.report.write import report as write

    files = write(runs, output, images=figures, control=control)
    say(f"Wrote {files[0]}" + (f" and {len(files) - 1} images to {figures}" if figures else ""))


@app.command(epilog="Example: hyperclone demo  |  shorter: hyperclone demo --tokens 50k --output /tmp/demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="For everything it makes.")] = Path(
        "hyperclone-demo"
    ),
    tokens: Annotated[str | None, typer.Option(metavar="COUNT", help="Tokens for each arm [200k].")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Arms at a time [one for each core, up to 3].")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each arm [as of `hyperclone study`].")] = None,
) -> None:
    """Run the HyperCloning experiment in small: a few minutes on two cores, offline.

    A model that ships with the package is grown, proved, and trained against random weights on the same text.
    """
    from hyperclone.cli.display import demo, plan_and_proof
    from hyperclone.demo import demo as demonstration

    demonstration.prepare(output)
    console = make_console()
    study = demonstration.request(tokens)
    if (output / "clone").is_dir():
        say(f"{output / 'clone'}: grown and proved before")
    else:
        with plan_and_proof.progress_bars(make_console(error=True)) as progress:
            done = demonstration.grow(output, on_plan=partial(show_plan, tensors=False), progress=progress)
        if done is not None and done.proof is not None:
            show_proof(done.proof)
    jobs = jobs or min(os.cpu_count() or 1, len(study.arms))
    with demo.DemoView(console, study, units.parse(study.train["tokens"], "tokens"), jobs=jobs) as view:
        ran = demonstration.train(output, tokens=tokens, jobs=jobs, threads=threads, on_event=view)
    if any(run.status == "interrupted" for run in ran.runs):
        say("Interrupted: rerun the same command to resume.")
        raise typer.Exit(130)
    if any(run.status == "failed" for run in ran.runs):
        say("Some arms failed. Rerun the same command to try them again.", error=True)
        raise typer.Exit(1)
    page = demonstration.report(output)
    demo.closing(console, view, demonstration.write_on(ran), demonstration.PROMPT)
    say(f"\n{demo.verdict(ran.speedups)}\n\nEverything is in {output}; the report: {page}")
