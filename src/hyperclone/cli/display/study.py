"""What people see of a study: a bar for each run that is going on, a line for each that has ended, a table."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from hyperclone import units
from hyperclone.planning.growth import Growth
from hyperclone.study import results
from hyperclone.study.config import Study
from hyperclone.study.runner import Progress as State
from hyperclone.study.runner import Run
from hyperclone.study.speedup import Speedup, over_seeds
from hyperclone.training import metrics, run_record
from hyperclone.training.config import Training
from hyperclone.units import human_count


class Show:
    """Watches a study and tells the console. To be used as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._going: dict[Path, tuple[TaskID, float]] = {}
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Show:
        self._bar.start()
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._reader.join()
        self._bar.stop()

    def __call__(self, kind: str, told: dict[str, Any]) -> None:
        """Something has happened."""
        match kind:
            case "begin":
                task = self._bar.add_task(told["what"], total=None, figures="")
                self._going[told["path"]] = (task, time.monotonic())
                if not self._console.is_terminal:
                    self._say(f"{told['what']} ...")
            case "tuned":
                tried = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in told["tried"])
                self._say(f"{told['arm'].name}: learning rate {told['lr']:g} (validation loss by rate: {tried})")
            case "end":
                self._say(ended(told["run"]))
            case "other source":
                self._say(
                    f"source {told['source'].name} was trained again, since its weights are not here, and ends at "
                    f"{told['now']:.4f} instead of {told['before']:.4f}: arithmetic differs between machines. Runs "
                    "of it and of its clones that were begun before are of that one; delete them to have all from one."
                )

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _read(self) -> None:
        """Follow the runs' own files."""
        while not self._over.wait(1.0):
            for place, (task, _) in list(self._going.items()):
                try:
                    lines = metrics.read(place)
                    steps = json.loads((place / run_record.FILE).read_text())["curve"]["steps"]
                except (OSError, ValueError, KeyError):
                    continue
                if not lines:
                    continue
                loss = next((line["loss"] for line in reversed(lines) if "loss" in line), None)
                step = lines[-1]["step"]
                self._bar.update(task, completed=step, total=steps, figures="" if loss is None else f"loss {loss:.4f}")
                if step >= steps:
                    self._bar.remove_task(task)
                    self._going.pop(place, None)


def ended(run: Run) -> str:
    """How a run ended, in a line."""
    if run.status != "finished" or run.path is None:
        return f"{run.arm.name}, seed {run.seed}: {run.status}" + (f"\n{run.error}" if run.error else "")
    losses = [line["eval_loss"] for line in metrics.read(run.path) if "eval_loss" in line]
    came = f": held-out loss {losses[0]:.4f} -> {losses[-1]:.4f}" if losses else ": finished"
    return f"{run.arm.name}, seed {run.seed}{came}"


def outlook(study: Study) -> Table:
    """What a study would run: its arms, and how many tokens they take in all."""
    made = Table(title=study.name, caption=f"seeds {', '.join(map(str, study.seeds))}; control: {study.control}")
    made.add_column("arm")
    made.add_column("starts from")
    for column in ("tokens", "learning rate", "runs", "tokens in all"):
        made.add_column(column, justify="right")
    whole = 0
    for source in study.sources.values():
        if source.train is not None:
            tokens = units.parse(source.train["tokens"], "tokens")
            whole += tokens
            rate = f"{source.train.get('lr', Training.lr):g}"
            made.add_row(f"source {source.name}", "random weights", human_count(tokens), rate, "1", human_count(tokens))
    for arm in study.arms.values():
        tokens, runs = units.parse(arm.train["tokens"], "tokens"), len(study.seeds)
        total = tokens * runs
        rate = f"as {arm.like}" if arm.like else f"{arm.train.get('lr', Training.lr):g}"
        if arm.tuning is not None:
            tried = arm.tuning.lr
            total += len(tried) * units.parse({**arm.train, **arm.tuning.train}["tokens"], "tokens")
            rate, runs = "one of " + ", ".join(f"{one:g}" for one in tried), runs + len(tried)
        whole += total
        origin = arm.model or (arm.source.name if arm.source else "")
        how = f"{origin} {Growth(**arm.growth).flags()}" if arm.growth else origin
        start = f"random weights ({how})" if arm.kind == "random" else how
        made.add_row(arm.label, start, human_count(tokens), rate, str(runs), human_count(total))
    made.add_section()
    made.add_row("in all", "", "", "", "", human_count(whole))
    return made


def table(state: State, found: Sequence[tuple[Run, Speedup]]) -> Table:
    """Arms with their median over seeds (lowest to highest); compared with the control as far as that has ended."""
    control = state.study.control
    compared = ("less\ncontrol", "forgets", "faster:\ntokens", "\nFLOPs", "with\nsource")
    made = Table(title=state.study.name, caption="median over seeds, lowest - highest"
                 + ("; speed-ups as in docs/study.md" if control else ""))  # fmt: skip
    made.add_column("arm")
    for column in ("lr", "loss", *(compared if control else ())):
        made.add_column(column, justify="right")
    for arm in state.study.arms.values():
        done = [run.path for run in state.runs if run.arm is arm and run.status == "finished" and run.path]
        losses = [rows[-1]["loss"] for place in done if (rows := results.evaluations(place))]
        if not losses:
            continue
        rate = state.chosen.get(arm.like or arm.name, arm.train.get("lr"))
        row = [arm.name, "" if rate is None else f"{rate:g}", f"{statistics.median(losses):.4f}"]
        if ours := [one for run, one in found if run.arm is arm]:
            forgot = [one.forgetting for one in ours if one.forgetting is not None]
            less = f"{statistics.median(one.difference_to_target for one in ours):+.4f}"
            row += ["control" if arm.name == control else less, f"{max(forgot):.4f}" if forgot else ""]
            if arm.name != control:
                fields = ("speedup_tokens", "speedup_flops", "charged_flops")
                row += [times([getattr(one, field) for one in ours]) for field in fields]
        made.add_row(*row)
    return made


def times(values: Sequence[float | None]) -> str:
    """A speed-up over seeds: median (lowest to highest)."""
    median, low, high = over_seeds(values)
    if not high:
        return "not reached"
    shown = [("at once" if one == float("inf") else f"{one:.2f}x" if one else "not") for one in (median, low, high)]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]}\n{shown[1]} - {shown[2]}"
