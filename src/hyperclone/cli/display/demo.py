"""The demonstration in the terminal: the curves as they grow, and in the end what they mean.

A terminal gets a picture that is redrawn while the arms train: all arms in one frame, and below it, if the terminal is
high enough, a frame without random weights, since next to their fall the others look the same. Elsewhere a line
is printed for each quarter of an arm's tokens. Both read the runs' own metrics.jsonl.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hyperclone.cli.display.chart import Line, chart
from hyperclone.cli.display.study import ended
from hyperclone.study.config import Study
from hyperclone.study.progress import Began, Event, Run, RunEnded
from hyperclone.study.speedup import Speedup
from hyperclone.training import metrics

TITLE = "Held-out loss, nats per token (lower is better)"
_COLORS = {"random": "bright_black", "clone": "dark_orange", "continued": "dodger_blue1"}
_BOTH_FRAMES = 31  # rows of a terminal that both frames fit into
_QUARTER = 0.25


@dataclass(frozen=True)
class Standing:
    """How far an arm is.

    Attributes:
        tokens: trained on.
        loss: the last held-out loss; None before the first.
        pace: seconds for each token, evaluations and saving included; None before the first step.
    """

    tokens: float
    loss: float | None
    pace: float | None


class DemoView:
    """Shows the study of the demonstration. To be used as a context."""

    def __init__(self, console: Console, study: Study, tokens: int, *, jobs: int = 1) -> None:
        """What to show; entering the context begins to show it.

        Args:
            console: to print on.
            study: the demonstration's (demo.request).
            tokens: of each arm.
            jobs: arms that train at a time, for the time left.
        """
        self._console, self._tokens, self._jobs = console, tokens, jobs
        self._paths: dict[str, Path] = {}
        self._labels = {arm.name: arm.label for arm in study.arms.values()}
        self._quarters: dict[str, int] = {}
        self._over: set[str] = set()
        self._stopping = False
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._draw)
        self._on_terminal = console.is_terminal
        self._done = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> DemoView:
        if self._on_terminal:
            self._live.start()
        else:
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._on_terminal:
            self._live.stop()
        else:
            self._reader.join()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Began(path=path, run=Run(arm=arm)):
                self._paths[arm.name] = path
                if not self._on_terminal:
                    self._print(f"{arm.name}: training ({arm.label}) ...")
            case RunEnded(run):
                self._over.add(run.arm.name)
                self._stopping = self._stopping or run.status == "interrupted"
                if run.path is not None:
                    self._paths[run.arm.name] = run.path
                self._print(ended(run))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _read(self) -> None:
        """A line for each quarter of an arm that has passed."""
        while not self._done.wait(1.0):
            for arm in list(self._paths):
                now = self._standing(arm)
                quarter = int(now.tokens / self._tokens / _QUARTER)
                if now.loss is not None and self._quarters.get(arm, 0) < quarter < 1 / _QUARTER:
                    self._quarters[arm] = quarter
                    self._print(f"{arm}: {self._count(now.tokens)}, held-out loss {now.loss:.4f}")

    def _standing(self, arm: str) -> Standing:
        lines = metrics.read(self._paths[arm]) if arm in self._paths else []
        if not lines:
            return Standing(0.0, None, None)
        loss = next((float(line["eval_loss"]) for line in reversed(lines) if "eval_loss" in line), None)
        tokens = float(lines[-1]["tokens"])
        return Standing(tokens, loss, lines[-1]["seconds"] / tokens if tokens else None)

    def _count(self, tokens: float) -> str:
        return f"{tokens / 1e3:.0f}k of {self._tokens / 1e3:.0f}k tokens"

    def lines(self) -> list[Line]:
        """Held-out losses so far."""
        lines = []
        for arm in self._labels:
            if arm in self._paths:
                evaluated = [line for line in metrics.read(self._paths[arm]) if "eval_loss" in line]
                x, y = [float(line["tokens"]) for line in evaluated], [float(line["eval_loss"]) for line in evaluated]
                lines.append(Line(arm, _COLORS.get(arm, "white"), x, y))
        return lines

    def picture(self, *, width: int, height: int, near: int = 0) -> Text:
        """The curves.

        Args:
            width: in characters.
            height: of the frame with all arms, in rows.
            near: rows of a second frame without random weights; 0 for none.
        """
        lines, x = self.lines(), (0.0, float(self._tokens))
        drawn = chart(lines, width=width, height=height, x=x, label="tokens", least=1.0)
        close = [line for line in lines if line.name != "random"]
        if near and any(line.y for line in close):
            drawn.append("\nThe same without random weights\n", style="bold")
            drawn.append(chart(close, width=width, height=near, x=x, label="tokens", least=0.1))
        return drawn

    def table(self) -> Table:
        """A row for each arm: how far, its loss, the time left."""
        table = Table.grid(padding=(0, 2))
        for arm, label in self._labels.items():
            now = self._standing(arm)
            if arm not in self._paths:
                rest = "waiting"
            elif arm in self._over:
                rest = "done"
            else:
                rest = "starting" if now.pace is None else clock((self._tokens - now.tokens) * now.pace) + " left"
            loss = "" if now.loss is None else f"{now.loss:.3f}"
            name = Text(arm, style=f"bold {_COLORS.get(arm, 'white')}")
            table.add_row(name, label, self._count(now.tokens), loss, rest)
        return table

    def left(self) -> float | None:
        """Seconds until all arms are done, at the pace so far; None before any arm has a pace."""
        standings = [self._standing(arm) for arm in self._labels if arm not in self._over]
        paces = [one.pace for one in standings if one.pace is not None]
        if not paces:
            return None
        usual = sum(paces) / len(paces)
        each = [max(0.0, self._tokens - one.tokens) * (one.pace or usual) for one in standings]
        return max(*each, sum(each) / self._jobs)

    def _draw(self) -> Group:
        both = self._console.height >= _BOTH_FRAMES
        left = self.left()
        figures = "" if left is None else f"about {clock(left)} left; "
        hint = "stopping; progress is saved" if self._stopping else "Ctrl-C stops; rerun the same command to resume"
        spent = f"{clock(time.monotonic() - self._began)} spent; {figures}{hint}"
        height = 12 if both else max(6, min(16, self._console.height - 7))
        picture = self.picture(width=min(self._console.width, 100), height=height, near=10 if both else 0)
        return Group(Text(TITLE, style="bold"), picture, self.table(), Text(spent, style="dim"))


def clock(seconds: float) -> str:
    """A time as people say it: 45 s, 3:05 min."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02d} min"


def closing(console: Console, view: DemoView, texts: list[tuple[str, str]], prompt: str) -> None:
    """Curves and texts, to stay on the screen."""
    console.print(f"\n{TITLE}", style="bold", highlight=False)
    console.print(view.picture(width=min(console.width, 100), height=13, near=10))
    if texts:
        table = Table(title=f"\n“{prompt} …” (greedy, repetition penalty 1.3)", title_justify="left",
                      title_style="bold", show_header=False, box=None, width=min(console.width, 100))  # fmt: skip
        for name, text in texts:
            table.add_row(Text(name, style=f"bold {_COLORS.get(name, '')}".strip()), Text(" ".join(text.split())))
        console.print(table)


def verdict(speedups: Sequence[tuple[Run, Speedup]]) -> str:
    """What the demonstration shows, in words; empty if the clone or Seedling trained further did not end.

    Args:
        speedups: of the arms, against Seedling trained further.
    """
    by_arm = {run.arm.name: speedup for run, speedup in speedups}
    if "clone" not in by_arm:
        return ""
    said = [against_continued(by_arm["clone"])]
    if "random" in by_arm:
        said.append(f"Random weights of the clone's size end at {by_arm['random'].final:.3f} after as many tokens.")
    said.append("One seed and a few minutes are a demonstration, not evidence; docs/findings.md has studies.")
    return "\n".join(said)


def against_continued(clone: Speedup) -> str:
    """The clone against its source trained further, in tokens and in FLOPs."""
    gap = clone.final - clone.target
    said = f"Seedling itself, trained further, ends at a held-out loss of {clone.target:.3f}; the clone ends "
    if abs(gap) < 5e-4:
        return f"{said}level with it."
    said += f"{abs(gap):.3f} nats {'below' if gap < 0 else 'above'} it, at {clone.final:.3f}."
    if clone.speedup_tokens is None or clone.speedup_flops is None or math.isinf(clone.speedup_tokens):
        return said
    took = _of_flops(clone.speedup_flops)
    return f"{said}\nIt was there with {clone.speedup_tokens:.1f}x fewer tokens, which took {took}."


def _of_flops(speedup: float) -> str:
    return f"{1 / speedup:.1f}x the FLOPs" if speedup < 1 else f"{speedup:.1f}x fewer FLOPs"
