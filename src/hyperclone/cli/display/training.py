"""What people see of a training: a summary before it starts, a bar while it runs, a line for each measurement.

Without a terminal there is no bar, and a line for each log instead.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hyperclone.units import human_bytes, human_count

if TYPE_CHECKING:
    from hyperclone.training.run import Trained

_WEIGHTS = {
    "drawn": "drawn anew (the control arm)",
    "grown": "grown by hyperclone",
    "trained": "as they are; no receipt",
}

_COPIES = {"read": "cosine of copies: read", "write": "written", "effective_rank": "effective rank"}


class TrainingView:
    """Watches a training and tells the console. To be used as a context, which ends the bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()
        self._steps = 0

    def __enter__(self) -> TrainingView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, kind: str, told: dict[str, Any]) -> None:
        """Something has happened."""
        match kind:
            case "tokenise":
                figures = human_bytes(told["bytes"])
                self._move("Tokenising", told["bytes"], told["of"], figures)
                if not self._console.is_terminal and time.monotonic() - self._said > 30:
                    self._said = time.monotonic()
                    self._say(f"tokenising: {figures}" + (f" of {human_bytes(told['of'])}" if told["of"] else ""))
            case "start":
                self._hide("Tokenising")
                self._steps = told["sizes"].steps
                for line in summary(told):
                    self._say(line)
            case "state":
                self._say(
                    f"optimizer state of step {told['step']} loaded for {told['filled']} parameters"
                    + (f"; {told['fresh']} start afresh" if told["fresh"] else "")
                )
            case "step":
                self._move("Training", told["step"], told["steps"])
            case "log":
                if self._console.is_terminal:
                    self._move("Training", told["step"], self._steps, f"loss {told['loss']:.4f}  {_speed(told)}")
                else:
                    norm = "" if told["grad_norm"] is None else f"  norm {told['grad_norm']:.2f}"
                    self._say(
                        f"step {told['step']}/{self._steps}  loss {told['loss']:.4f}  lr {told['lr']:.2e}{norm}  "
                        f"{_speed(told)}  {_left(told, self._steps)}"
                    )
            case "eval":
                self._say(
                    f"step {told['step']}/{self._steps}  held-out loss {told['eval_loss']:.4f}, "
                    f"{told['bits_per_byte']:.4f} bits per byte"
                )
            case "anatomy":
                figures = "  ".join(f"{_COPIES[k]} {told['anatomy'][k]:.4g}" for k in _COPIES if k in told["anatomy"])
                self._say(f"step {told['step']}/{self._steps}  {figures}")
            case "tasks":
                for task, found in told["tasks"].items():
                    self._say(
                        f"step {told['step']}/{self._steps}  {task}  "
                        + "  ".join(f"{k} {v:.4f}" for k, v in found.items())
                    )
            case "save" if not self._console.is_terminal:
                self._say(f"step {told['step']}/{self._steps}  saved {told['checkpoint']}")

    def _move(self, stage: str, done: int, total: int | None, figures: str | None = None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, figures="")
        told: dict[str, Any] = {} if figures is None else {"figures": figures}
        self._bar.update(self._tasks[stage], completed=done, total=total, **told)

    def _hide(self, stage: str) -> None:
        if stage in self._tasks:
            self._bar.update(self._tasks[stage], visible=False)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def summary(told: dict[str, Any]) -> list[str]:
    """What is about to run, in lines."""
    sizes, text, held_out = told["sizes"], told["text"], told["held_out"]
    epochs = sizes.steps * sizes.windows / told["windows"]
    share = f"{sizes.windows} windows of {sizes.seq_len}"
    if told["processes"] > 1 or sizes.accumulation > 1:
        processes = "1 process" if told["processes"] == 1 else f"{told['processes']} processes"
        share += f" = {processes} x {sizes.accumulation} x {sizes.micro_batch}"
    rates = (
        "by the scaling rule: the source's rate times each group's factor"
        if told["law"]
        else "the same for all weights"
    )
    lines = [
        f"model     {told['model']}, {human_count(told['parameters'])} parameters, weights {_WEIGHTS[told['weights']]}",
        f"text      {text.documents:,} documents, {human_count(text.tokens)} tokens",
        *([f"held out  {held_out.documents:,} documents, {human_count(held_out.tokens)} tokens"] if held_out else []),
        f"run       {sizes.steps:,} steps of {human_count(sizes.batch_tokens)} tokens ({share})",
        f"budget    {human_count(sizes.tokens)} tokens, {epochs:.3g} times the data",
        f"optimizer {_optimizer(told)}",
        f"rates     {rates}",
        f"device    {told['device']}, {told['precision']}"
        + (", compiled" if told["compile"] else "")
        + ("" if told["mfu"] else "; no MFU, since its peak is not known"),
    ]
    if told["idle"]:
        lines.append(
            f"NOTE: {told['idle']} more GPUs are idle; "
            f"torchrun --nproc-per-node {told['idle'] + 1} -m hyperclone train ... uses them"
        )
    if told["step"]:
        lines.append(f"goes on from step {told['step']}")
    return lines


def _optimizer(told: dict[str, Any]) -> str:
    if told["optimizer"] == "adamw":
        return "AdamW"
    own = told["difference_lr"]
    return f"AdamW on what copies have in common ({told['lr']:g}) and on their differences " + (
        f"({told['lr']:g} as well; --difference-lr, about what random weights would want, parts them sooner)"
        if own is None
        else f"({own:g})"
    )


def ending(done: Trained) -> str:
    """What was done, in a sentence."""
    if done.interrupted is not None:
        return (
            f"Stopped by signal {done.interrupted} after step {done.step}; a checkpoint is saved, and the same command "
            "with --resume goes on."
        )
    figures = {"loss": "loss", "eval_loss": "held-out loss", "bits_per_byte": "bits per byte"}
    told = ", ".join(f"{label} {done.metrics[name]:.4f}" for name, label in figures.items() if name in done.metrics)
    return f"Trained on {human_count(done.tokens)} tokens{': ' + told if told else ''}. The model is in {done.path}"


def _speed(told: dict[str, Any]) -> str:
    parts = [f"{human_count(round(told['tokens_per_second']))} tokens/s"] if told["tokens_per_second"] else []
    return "  ".join([*parts, *([f"MFU {told['mfu']:.1%}"] if told["mfu"] else [])])


def _left(told: dict[str, Any], steps: int) -> str:
    if not told["tokens_per_second"] or not told["step"]:
        return ""
    seconds = round((steps - told["step"]) * told["tokens"] / told["step"] / told["tokens_per_second"])
    return f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02} left"
