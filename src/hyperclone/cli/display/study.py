"""A study in the terminal: a bar for each training that is running, a line for each that has ended, a table."""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from hyperclone import units
from hyperclone.cli.display.plan_and_proof import plain_table
from hyperclone.planning.growth import Growth
from hyperclone.study import results
from hyperclone.study.config import Arm, SourceModel, Study
from hyperclone.study.progress import Began, Compared, Event, Progress, RateChosen, Run, RunEnded, SourceRemade
from hyperclone.study.speedup import Speedup, Spread
from hyperclone.training import metrics, resume
from hyperclone.training.config import Training
from hyperclone.units import human_count


class StudyView:
    """Prints the events of a study. To be used as a context."""

    def __init__(self, console: Console) -> None:
        """A view on a console."""
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._running: dict[Path, TaskID] = {}
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> StudyView:
        self._bars.start()
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._reader.join()
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Compared():
                if line := compared(event):
                    self._print(line)
            case Began(what, path):
                self._running[path] = self._bars.add_task(what, total=None, figures="")
                if not self._console.is_terminal:
                    self._print(f"{what} ...")
            case RateChosen(arm, lr, tried):
                losses = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in tried)
                self._print(f"{arm.name}: learning rate {lr:g} (validation loss by rate: {losses})")
            case RunEnded(run):
                self._print(ended(run))
            case SourceRemade():
                self._print(remade(event))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _read(self) -> None:
        """Read how far each run is from its files."""
        while not self._closed.wait(1.0):
            for path, task in list(self._running.items()):
                try:
                    lines = metrics.read(path)
                    steps = json.loads((path / resume.RECORD_FILE).read_text())["curve"]["steps"]
                except (OSError, ValueError, KeyError):
                    continue
                if not lines:
                    continue
                loss = next((line["loss"] for line in reversed(lines) if "loss" in line), None)
                step = lines[-1]["step"]
                self._bars.update(task, completed=step, total=steps, figures="" if loss is None else f"loss {loss:.4f}")
                if step >= steps:
                    self._bars.remove_task(task)
                    self._running.pop(path, None)


def ended(run: Run) -> str:
    """How a run ended, in a line."""
    which = f"{run.arm.name}, seed {run.seed}"
    if run.record is None:
        kept = "" if run.kept is None else "; its recorded result is kept"
        return f"{which}: {run.status}{kept}" + (f"\n{run.error}" if run.error else "")
    losses = run.record.curve.loss
    return f"{which}: held-out loss {losses[0]:.4f} -> {losses[-1]:.4f}"


def compared(event: Compared) -> str:
    """What a study does with recorded runs that are not the ones it asks for here; empty if there are none."""
    if not event.former:
        return ""
    runs = "1 recorded run is" if event.former == 1 else f"{event.former} recorded runs are"
    return (
        f"{runs} of another text, model or setting than the study has on this machine. Their results stay in the "
        f"tables as former; {event.missing} run{'' if event.missing == 1 else 's'} will be trained. "
        "--output names another directory, which leaves these tables as they are."
    )


def remade(event: SourceRemade) -> str:
    """How a source that was trained again ended."""
    name, before, now = event.source.name, event.before, event.now
    if before == now:
        return f"source {name} was trained again and ends at {now:.4f}, as recorded"
    digits = 4 if f"{before:.4f}" != f"{now:.4f}" else 8
    return (
        f"source {name} was trained again and ends at {now:.{digits}f} instead of {before:.{digits}f}: arithmetic "
        "differs between machines. Both are recorded in sources.csv: finished runs are of the earlier one, further "
        "runs begin from this one. To have all from this one, set the status of the finished runs in runs.csv to "
        "waiting."
    )


def outlook(study: Study, progress: Progress | None) -> Table:
    """What a study would run: its arms, how many tokens they take in all, and how many runs have finished.

    Args:
        study: the request.
        progress: what of it has finished (study.finished); None if nothing has.
    """
    columns = ("arm", "starts from", "tokens", "learning rate", "runs", "finished", "tokens in all")
    table = plain_table(*columns, title=study.name)
    table.columns[1].justify = "left"
    table.caption, table.caption_justify = f"seeds {', '.join(map(str, study.seeds))}; control: {study.control}", "left"
    whole = 0
    for source in study.sources.values():
        if source.train is not None and source.study is None:
            tokens = units.parse(source.train["tokens"], "tokens")
            whole += tokens
            lr = f"{source.train.get('lr', Training.lr):g}"
            done = "" if progress is None else _found(source, progress)
            row = ("random weights", human_count(tokens), lr, "1", done, human_count(tokens))
            table.add_row(f"source {source.name}", *row)
    for arm in study.arms.values():
        tokens, runs = units.parse(arm.train["tokens"], "tokens"), len(study.seeds)
        total = tokens * runs
        lr = f"as {arm.like}" if arm.like else f"{arm.train.get('lr', Training.lr):g}"
        if arm.tuning is not None:
            tried = arm.tuning.lr
            total += len(tried) * units.parse({**arm.train, **arm.tuning.train}["tokens"], "tokens")
            extended = 0 if progress is None else len(progress.tuning.get(arm.name, ()))
            lr, runs = "one of " + ", ".join(f"{rate:g}" for rate in tried), runs + max(len(tried), extended)
        whole += total
        row = (_start(arm), human_count(tokens), lr, str(runs), _finished(arm, progress), human_count(total))
        table.add_row(arm.name, *row)
    table.add_row("in all", "", "", "", "", "", human_count(whole), style="bold")
    return table


def _start(arm: Arm) -> str:
    """What an arm starts from, in words."""
    if arm.branch_of is not None:
        return f"{arm.branch_of}, before its rate decays"
    source = arm.model or (arm.source.name if arm.source else "")
    grown = f"{source} {Growth(**arm.growth).flags()}" if arm.growth else source
    return f"random weights ({grown})" if arm.kind == "random" else grown


def _found(source: SourceModel, progress: Progress) -> str:
    """How many trainings of a source have finished: one or none."""
    return "?" if source.name in progress.kept_sources else str(int(source.name in progress.sources))


def _finished(arm: Arm, progress: Progress | None) -> str:
    """How many of an arm's runs have finished, those that choose its learning rate included."""
    if progress is None:
        return ""
    runs = [run for run in progress.runs if run.arm.name == arm.name]
    if any(run.status == "failed" for run in runs):
        return "?"  # its text or its model is not on this machine, so its key is not known
    return str(sum(run.status == "finished" for run in runs) + len(progress.tuning.get(arm.name, ())))


def obstacles(progress: Progress | None) -> list[str]:
    """Why it is not known what has finished, each reason once."""
    if progress is None:
        return []
    return list(dict.fromkeys(run.error for run in progress.runs if run.status == "failed" and run.error))


def table(progress: Progress, speedups: Sequence[tuple[Run, Speedup]]) -> Table:
    """Arms with their median over seeds (lowest to highest); compared with the control as far as that has ended."""
    control = progress.study.control
    compared = ("minus\ncontrol", "rise", "faster:\ntokens", "\nFLOPs", "with\nsource")
    table = plain_table("arm", "lr", "loss", *(compared if control else ()), title=progress.study.name)
    table.caption = "median over seeds, lowest - highest" + ("; speed-ups as in docs/study.md" if control else "")
    table.caption_justify = "left"
    for arm in progress.study.arms.values():
        losses = results.losses([run for run in progress.runs if run.arm is arm])
        if not losses:
            continue
        lr = progress.chosen.get(arm.like or arm.name, arm.train.get("lr"))
        row = [arm.name, "" if lr is None else f"{lr:g}", f"{statistics.median(losses):.4f}"]
        if ours := [speedup for run, speedup in speedups if run.arm is arm]:
            forgot = [one.forgetting for one in ours if one.forgetting is not None]
            difference = f"{statistics.median(one.difference_to_target for one in ours):+.4f}"
            row += ["control" if arm.name == control else difference, f"{max(forgot):.4f}" if forgot else ""]
            if arm.name != control:
                row += [
                    times([one.speedup_tokens for one in ours]),
                    times([one.speedup_flops for one in ours]),
                    times([one.charged_flops for one in ours]),
                ]
        table.add_row(*row)
    return table


def times(values: Sequence[float | None]) -> str:
    """A speed-up over seeds: median (lowest to highest)."""
    over = Spread.over(values)
    if not over.high:
        return "not reached"
    median, low, high = (_factor(one) for one in (over.median, over.low, over.high))
    return median if low == high else f"{median}\n{low} - {high}"


def _factor(value: float) -> str:
    return "at the start" if value == float("inf") else f"{value:.2f}x" if value else "not"
