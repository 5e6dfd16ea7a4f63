"""What happens in a training: one frozen class for each kind of event that `hyperclone.train(..., watch=...)` reports.

The fields of a `Measurement` are those of its line in metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hyperclone.training.budget import Budget
    from hyperclone.training.config import Training
    from hyperclone.training.mixture import SourceUse
    from hyperclone.training.token_cache import TextSize

Weights = Literal["random", "grown", "stored"]  # randomly initialized; of a model with a receipt; of any other


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """Text is being tokenized.

    Attributes:
        nbytes: of text that is done; of a mixture, of the source that is being read.
        total: bytes of all this text; None where that is not known (Hub datasets, compressed files).
    """

    nbytes: int
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where and how a run computes.

    Attributes:
        name: of the GPU, or "CPU".
        processes: that share each batch.
        precision: "bf16" (autocast) or "fp32".
        compiled: torch.compile is used.
        peak_known: its peak FLOP/s are known, so that MFU can be given.
        idle_gpus: of this machine that no process uses.
    """

    name: str
    processes: int
    precision: str
    compiled: bool
    peak_known: bool
    idle_gpus: int


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """All is checked and loaded; steps follow.

    Attributes:
        model: its public name.
        parameters: how many it has.
        weights: where its weights come from.
        scaled: param groups follow the scaling rule; otherwise one learning rate is used everywhere.
        training: the request, with the optimizer that was chosen.
        budget: sizes of the run.
        windows: in the text, once through; None of streamed text.
        mixture: what it takes of each of its sources; empty where the text has no weights.
        text, held_out: how much text there is; None of streamed text, and of held-out text if none was wanted.
        step: that it resumes from; 0 for a new run.
        device: where it computes.
        doubt: what speaks against the way in which the model is taken (doubts.py); None for nothing.
    """

    model: str
    parameters: int
    weights: Weights
    scaled: bool
    training: Training
    budget: Budget
    windows: int | None
    mixture: tuple[SourceUse, ...]
    text: TextSize | None
    held_out: TextSize | None
    step: int
    device: Device
    doubt: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """One of the two trainings of a model that is grown on the way begins, or goes on.

    Attributes:
        stage: "small" before the growth, "grown" after it.
        tokens: of this stage.
        total_tokens: of both.
    """

    stage: Literal["small", "grown"]
    tokens: int
    total_tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelGrown:
    """The small model has been grown, and the files have been checked against the plan of the growth.

    Attributes:
        path: directory of the clone.
        checkpoint: of the small model that it was grown from.
        source_parameters, parameters: before and after.
        proved: the clone computes the same function; False for a growth that is not meant to keep it.
        optimizer_state: what became of the optimizer state, in a sentence.
    """

    path: str
    checkpoint: str
    source_parameters: int
    parameters: int
    proved: bool
    optimizer_state: str


@dataclass(frozen=True, kw_only=True)
class OptimizerStateLoaded:
    """The optimizer starts from moments that were grown with the model.

    Attributes:
        step: that the source's optimizer had taken; None where it does not count.
        filled: parameters that have moments.
        fresh: parameters that start without.
    """

    step: int | None
    filled: int
    fresh: int


@dataclass(frozen=True, kw_only=True)
class TextEnded:
    """A streamed text has been read to its end for the `passes`-th time, and is read again."""

    text: str
    passes: int


@dataclass(frozen=True, kw_only=True)
class StepTaken:
    """The optimizer has taken step `step` of `steps`."""

    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A complete checkpoint lies in the output, in the directory `checkpoint`."""

    step: int
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class Uploading:
    """The trained model is being uploaded to a repository of the Hub."""

    repo: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Something was measured after `step` steps, on `tokens` tokens."""

    step: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class LossLogged(Measurement):
    """The training loss since the last log.

    Attributes:
        loss: mean over the predicted tokens, in nats.
        lr: of the param group with the highest rate.
        grad_norm: before clipping; None where Trainer does not measure it.
        tokens_per_second: of the steps since the last log; None if there were none.
        mfu: model FLOPs utilization; None where the device's peak is not known.
    """

    loss: float
    lr: float
    grad_norm: float | None
    tokens_per_second: float | None
    mfu: float | None


@dataclass(frozen=True, kw_only=True)
class HeldOutEvaluated(Measurement):
    """The loss on held-out text: in nats per predicted token, and in bits per byte of text."""

    eval_loss: float
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class AnatomyMeasured(Measurement):
    """How far the copies have diverged: figures by their name, such as "read" or "read/model.layers.0...weight"."""

    anatomy: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TasksEvaluated(Measurement):
    """Tasks of lm-evaluation-harness were run: their metrics, by task and name."""

    tasks: Mapping[str, Mapping[str, float]]


Event = (
    Tokenizing
    | RunStarted
    | StageStarted
    | ModelGrown
    | OptimizerStateLoaded
    | TextEnded
    | StepTaken
    | CheckpointSaved
    | Uploading
    | LossLogged
    | HeldOutEvaluated
    | AnatomyMeasured
    | TasksEvaluated
)
Watch = Callable[[Event], None]
