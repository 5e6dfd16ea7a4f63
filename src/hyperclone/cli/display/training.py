"""What people see of a training: a summary before it starts, a bar while it runs, a line for each measurement.

Without a terminal there is no bar, and a line for each log instead.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hyperclone.training.budget import BUFFER
from hyperclone.training.events import (
    AnatomyMeasured,
    CheckpointSaved,
    Event,
    HeldOutEvaluated,
    LossLogged,
    ModelGrown,
    OptimizerStateLoaded,
    RunStarted,
    StageStarted,
    StepTaken,
    TasksEvaluated,
    TextEnded,
    Tokenizing,
    Uploading,
    Weights,
)
from hyperclone.training.optimizer_names import OF_COPIES
from hyperclone.units import human_bytes, human_count

if TYPE_CHECKING:
    from hyperclone.training.config import Training
    from hyperclone.training.mixture import SourceUse
    from hyperclone.training.run import Trained

_TOKENIZING, _TRAINING = "Tokenizing", "Training"  # the bar's stages
_QUIET_SECONDS = 30  # between lines on tokenizing, without a terminal
_OPTIMIZERS = {
    "adamw": "AdamW",
    "rotated": "rotated AdamW",
    "muon": "Muon, and rotated AdamW for the rest",
    "plain-muon": "Muon on whole matrices, and AdamW for the rest",
}
WEIGHTS: dict[Weights, str] = {
    "random": "randomly initialized",
    "grown": "grown by hyperclone",
    "stored": "as stored; no receipt",
}
STREAMED = "read and tokenized while training goes on"
_ANATOMY = {"read": "cosine of copies: read", "write": "written", "effective_rank": "effective rank"}


class TrainingView:
    """Shows the events of a training on a console. To be used as a context, which ends the bar."""

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
        self._last_line = time.monotonic()
        self._steps = 0

    def __enter__(self) -> TrainingView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Tokenizing():
                self._tokenizing(event)
            case RunStarted():
                self._hide(_TOKENIZING)
                self._steps = event.budget.steps
                for line in summary(event):
                    self._say(line)
            case StageStarted(stage=stage, tokens=tokens, total_tokens=total):
                model, number = ("the small model", 1) if stage == "small" else ("the grown model", 2)
                self._say(f"stage {number} of 2: {model}, {human_count(tokens)} of {human_count(total)} tokens")
            case ModelGrown():
                for line in growth_summary(event):
                    self._say(line)
            case OptimizerStateLoaded(step=step, filled=filled, fresh=fresh):
                rest = f"; {fresh} start without" if fresh else ""
                self._say(f"optimizer state of step {step} loaded for {filled} parameters{rest}")
            case TextEnded(text=text, passes=passes):
                self._say(f"the text of {text} has been read {passes} time{'s' * (passes > 1)}, and is read again")
            case StepTaken(step=step, steps=steps):
                self._move(_TRAINING, step, steps)
            case LossLogged():
                self._loss(event)
            case HeldOutEvaluated(step=step, eval_loss=loss, bits_per_byte=bits):
                self._say_at(step, f"held-out loss {loss:.4f}, {bits:.4f} bits per byte")
            case AnatomyMeasured(step=step, anatomy=figures):
                labeled = [f"{label} {figures[key]:.4g}" for key, label in _ANATOMY.items() if key in figures]
                self._say_at(step, "  ".join(labeled))
            case TasksEvaluated(step=step, tasks=tasks):
                for task, metrics in tasks.items():
                    self._say_at(step, "  ".join([task, *(f"{name} {value:.4f}" for name, value in metrics.items())]))
            case CheckpointSaved(step=step, checkpoint=checkpoint):
                if not self._console.is_terminal:
                    self._say_at(step, f"saved {checkpoint}")
            case Uploading(repo=repo):
                self._hide(_TRAINING)
                self._say(f"uploading to {repo}")

    def _tokenizing(self, event: Tokenizing) -> None:
        size = human_bytes(event.nbytes)
        self._move(_TOKENIZING, event.nbytes, event.total, size)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _QUIET_SECONDS:
            self._last_line = time.monotonic()
            self._say(f"tokenizing: {size}" + (f" of {human_bytes(event.total)}" if event.total else ""))

    def _loss(self, event: LossLogged) -> None:
        if self._console.is_terminal:
            self._move(_TRAINING, event.step, self._steps, f"loss {event.loss:.4f}  {_speed(event)}")
            return
        norm = "" if event.grad_norm is None else f"  norm {event.grad_norm:.2f}"
        left = _time_left(event, self._steps)
        self._say_at(event.step, f"loss {event.loss:.4f}  lr {event.lr:.2e}{norm}  {_speed(event)}  {left}")

    def _move(self, stage: str, done: int, total: int | None, figures: str | None = None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, figures="")
        self._bar.update(self._tasks[stage], completed=done, total=total)
        if figures is not None:
            self._bar.update(self._tasks[stage], figures=figures)

    def _hide(self, stage: str) -> None:
        if stage in self._tasks:
            self._bar.update(self._tasks[stage], visible=False)

    def _say_at(self, step: int, line: str) -> None:
        self._say(f"step {step}/{self._steps}  {line}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def summary(run: RunStarted) -> list[str]:
    """What is about to run, in lines."""
    budget, text, held_out, device = run.budget, run.text, run.held_out, run.device
    length = "" if run.windows is None else f", {budget.steps * budget.windows / run.windows:.3g} epochs"
    if run.mixture:  # each has epochs of its own
        length = ", until the first source is used up" if run.training.tokens is None else ""
    batch = f"{budget.windows} windows of {budget.seq_len}"
    if device.processes > 1 or budget.accumulation > 1:
        processes = "1 process" if device.processes == 1 else f"{device.processes} processes"
        batch += f" = {processes} x {budget.accumulation} x {budget.micro_batch}"
    rates = "lr times each group's multiplier by the scaling rule" if run.scaled else "the same for all parameters"
    lines = [
        f"model     {run.model}, {human_count(run.parameters)} parameters, weights {WEIGHTS[run.weights]}",
        "text      "
        + (_streamed(run) if text is None else f"{text.documents:,} documents, {human_count(text.tokens)} tokens"),
        *(f"mixture   {source_text(source, streamed=text is None)}" for source in run.mixture),
        *([f"held out  {held_out.documents:,} documents, {human_count(held_out.tokens)} tokens"] if held_out else []),
        f"run       {budget.steps:,} steps of {human_count(budget.batch_tokens)} tokens ({batch})",
        f"budget    {human_count(budget.tokens)} tokens{length}{after_skipped(run.training)}",
        f"optimizer {_optimizer(run.training, run.weights)}",
        f"rates     {rates}",
        f"device    {device.name}, {device.precision}"
        + (", compiled" if device.compiled else "")
        + ("" if device.peak_known else "; no MFU, since its peak is not known"),
    ]
    if device.idle_gpus:
        lines.append(
            f"NOTE: {device.idle_gpus} more GPUs are idle; "
            f"torchrun --nproc-per-node {device.idle_gpus + 1} -m hyperclone train ... uses them"
        )
    if run.doubt is not None:
        lines.append(f"WARNING: {run.doubt}")
    if run.step:
        lines.append(starting_step(run.training, run.step))
    return lines


def growth_summary(grown: ModelGrown) -> list[str]:
    """What became of the small model, in lines."""
    before, after = human_count(grown.source_parameters), human_count(grown.parameters)
    verdict = "proved to be the same function" if grown.proved else "as planned, which changes the function"
    return [
        f"grown     {grown.checkpoint} from {before} to {after} parameters, {verdict}: {grown.path}",
        f"state     {grown.optimizer_state}",
    ]


def after_skipped(training: Training) -> str:
    """Which part of the data's order a run reads, if that does not begin at its start."""
    skipped = training.skipped_tokens
    return f"; begins after {human_count(skipped)} tokens that another run has read" if skipped else ""


def starting_step(training: Training, step: int) -> str:
    """Where a run that does not start at step 0 goes on."""
    if training.branch_from is not None and not training.resume:
        return f"branches off {training.branch_from} at step {step}"
    return f"resumes from step {step}"


def _streamed(run: RunStarted) -> str:
    """How streamed text is read; a new run fills the buffer first, which takes a while."""
    first = human_count(min(BUFFER, run.budget.tokens))
    return STREAMED if run.step else f"{STREAMED}, the first {first} tokens before step 1"


def source_text(source: SourceUse, *, streamed: bool = False) -> str:
    """A source of a mixture: its share, what it holds, and how often that is read."""
    held = ", not tokenized yet" if source.tokens is None else f", {human_count(source.tokens)} tokens"
    trained = "" if source.trained_tokens is None else f", trained on {human_count(source.trained_tokens)}"
    epochs = "" if source.epochs is None else f", {source.epochs:.3g} epochs"
    return f"{100 * source.share:.3g}% of the windows: {source.source}{'' if streamed else held}{trained}{epochs}"


def optimizer_name(training: Training, weights: Weights) -> str:
    """The optimizer in words; rotated AdamW is AdamW where there are no copies."""
    name = _OPTIMIZERS[training.optimizer or "adamw"]
    return name if weights == "grown" else name.replace("rotated ", "")


def _optimizer(training: Training, weights: Weights) -> str:
    name = optimizer_name(training, weights)
    if training.optimizer not in OF_COPIES or weights != "grown":
        return name
    lr, difference_lr = training.lr, training.difference_lr
    return f"{name}: lr {lr:g} on the common part of copies, " + (
        f"{lr:g} on their differences (a higher --difference-lr, about that of random weights of this size, makes them "
        "diverge sooner; --source-lr gives it)"
        if difference_lr is None
        else f"{difference_lr:g} on their differences"
    )


def ending(trained: Trained) -> str:
    """What was done, in a sentence."""
    if trained.interrupted is not None:
        return (
            f"Stopped by signal {trained.interrupted} after step {trained.step}. A checkpoint is saved: rerun the same "
            "command with --resume to resume."
        )
    labels = {"loss": "loss", "eval_loss": "held-out loss", "bits_per_byte": "bits per byte"}
    figures = [f"{label} {trained.metrics[name]:.4f}" for name, label in labels.items() if name in trained.metrics]
    losses = f": {', '.join(figures)}" if figures else ""
    uploaded = f", and on the Hub: {trained.address}" if trained.address else ""
    small = f", after {human_count(trained.small_tokens)} of the small model" if trained.small_tokens else ""
    return f"Trained on {human_count(trained.tokens)} tokens{small}{losses}. The model is in {trained.path}{uploaded}"


def _speed(event: LossLogged) -> str:
    tokens = [f"{human_count(round(event.tokens_per_second))} tokens/s"] if event.tokens_per_second else []
    return "  ".join([*tokens, *([f"MFU {event.mfu:.1%}"] if event.mfu else [])])


def _time_left(event: LossLogged, steps: int) -> str:
    if not event.tokens_per_second or not event.step:
        return ""
    seconds = round((steps - event.step) * event.tokens / event.step / event.tokens_per_second)
    return f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02} left"
