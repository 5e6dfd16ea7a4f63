"""What people see of the demonstration: the curves as they grow, and in the end what they say."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hyperclone.chart import Line, chart
from hyperclone.study import Study
from hyperclone.study.speedup import Speedup
from hyperclone.study_display import ended
from hyperclone.training import metrics

_COLOURS = ("bright_black", "dark_orange", "dodger_blue1")


class Show:
    """Watches the study of the demonstration: live curves in a terminal, a line for each event elsewhere."""

    def __init__(self, console: Console, study: Study, tokens: int) -> None:
        self._console, self._tokens = console, tokens
        self._places: dict[str, Path] = {}
        self._arms = list(study.arms)
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._draw)
        self._watching = console.is_terminal

    def __enter__(self) -> Show:
        if self._watching:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._watching:
            self._live.stop()

    def __call__(self, kind: str, told: dict[str, Any]) -> None:
        """Something has happened."""
        if kind == "begin" and "run" in told:
            self._places[told["run"].arm.name] = told["path"]
            if not self._watching:
                self._console.print(f"training {told['run'].arm.label} ...", highlight=False)
        elif kind == "end":
            if told["run"].path is not None:
                self._places[told["run"].arm.name] = told["run"].path
            self._console.print(ended(told["run"]), highlight=False, soft_wrap=True)

    def lines(self) -> list[Line]:
        """Held-out losses so far."""
        found = []
        for arm, colour in zip(self._arms, _COLOURS, strict=False):
            if arm in self._places:
                told = [line for line in metrics.read(self._places[arm]) if "eval_loss" in line]
                points = ([float(line["tokens"]) for line in told], [float(line["eval_loss"]) for line in told])
                found.append(Line(arm, colour, *points))
        return found

    def picture(self, *, width: int, height: int = 16) -> Text:
        """The curves; of the first fall from random weights no more is shown than the others leave room for."""
        lines = self.lines()
        others = [value for line in lines if line.name != "random" for value in line.y]
        top = max(others) + 3.0 if others else None
        return chart(lines, width=width, height=height, x=(0, self._tokens), label="tokens", top=top)

    def _draw(self) -> Group:
        width = min(self._console.width, 100)
        title = Text("Held-out loss, nats per token (lower is better)", style="bold")
        figures = Table.grid(padding=(0, 2))
        for arm, place in self._places.items():
            told = metrics.read(place)
            at = told[-1]["tokens"] if told else 0
            speeds = [line["tokens_per_second"] for line in told if line.get("tokens_per_second")]
            left = (self._tokens - at) / statistics.mean(speeds[-5:]) if speeds else None
            rest = "" if left is None else "done" if at >= self._tokens * 0.99 else f"{left:.0f} s left"
            figures.add_row(arm, f"{at / 1e3:.0f}k of {self._tokens / 1e3:.0f}k tokens", rest)
        waited = f"{time.monotonic() - self._began:.0f} s; Ctrl-C stops, the same command goes on"
        return Group(title, self.picture(width=width), figures, Text(waited, style="dim"))


def closing(console: Console, show: Show, texts: list[tuple[str, str]], prompt: str) -> None:
    """Curves and texts, to stay on the screen."""
    console.print("\nHeld-out loss, nats per token (lower is better)", style="bold", highlight=False)
    console.print(show.picture(width=min(console.width, 100)))
    if texts:
        table = Table(title=f"\n“{prompt} …”, continued", title_justify="left", show_header=False, box=None)
        for name, text in texts:
            table.add_row(Text(name, style="bold"), Text(" ".join(text.split())))
        console.print(table)


def sentence(found: Speedup) -> str:
    """What one seed says of the clone."""
    speed, charged = found.speedup_tokens, found.charged_flops
    said = f"Random weights end at a held-out loss of {found.target:.2f}. "
    if speed is None:
        return said + f"The clone does not come down to that; it ends at {found.final:.2f}."
    if math.isinf(speed):
        return (
            said + f"The clone starts at {found.start:.2f}, already below, and ends at {found.final:.2f}.\n"
            "This leaves Seedling's own training out; docs/findings.md says what growing saves with it and without."
        )
    said += f"The clone is there with {speed:.1f}x fewer tokens, and ends at {found.final:.2f}."
    return said if charged is None else f"{said} With Seedling's own training charged: {charged:.2f}x in FLOPs."
