"""From tokens to steps: the windows of a batch, how processes and accumulation share them, and the number of steps.

The global batch is a property of the training, not of the machines: step k trains on the windows k B ... (k+1) B - 1
of the data's order, however many processes share them. So the loss curve is the same, and a run can be resumed on
another number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hyperclone.errors import TrainingError
from hyperclone.training.config import Training

_SEQ_LEN = 1024
WINDOWS = 64  # of a batch
_MICRO = 8
BUFFER = 1 << 23  # tokens of streamed text that are shuffled together, of all sources
UNKNOWN = 1 << 40  # windows of a text whose length is not known


@dataclass(frozen=True)
class Budget:
    """Sizes of a run.

    Attributes:
        seq_len: tokens of a window.
        windows: of a batch, over all processes.
        micro_batch: windows of one forward pass of one process.
        accumulation: forward passes of a process in a step.
        steps: of the optimizer.
    """

    seq_len: int
    windows: int
    micro_batch: int
    accumulation: int
    steps: int

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step."""
        return self.windows * self.seq_len

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return self.steps * self.batch_tokens


class Intervals(NamedTuple):
    """Steps between logs, evaluations and checkpoints."""

    log: int
    evaluate: int
    save: int


def intervals(training: Training, steps: int) -> Intervals:
    """Those of a run of so many steps: as asked for, or a share of the run."""
    asked = (training.log_every, 100), (training.eval_every, 20), (training.save_every, 10)
    return Intervals(*(every or -(-steps // times) for every, times in asked))


def sequence_length(wanted: int | None, positions: int | None) -> int:
    """Tokens of a window.

    Args:
        wanted: as asked for.
        positions: that the model has; None if they are unlimited.

    Raises:
        TrainingError: longer than the model has positions.
    """
    if wanted is None:
        return min(_SEQ_LEN, positions or _SEQ_LEN)
    if positions is not None and wanted > positions:
        raise TrainingError(
            "a window is longer than the model has positions",
            field="seq_len",
            found=wanted,
            expected=f"{positions} at most",
        )
    if wanted < 2:
        raise TrainingError("a window of one token has nothing to predict", field="seq_len", found=wanted)
    return wanted


def windows_to_skip(training: Training, seq_len: int) -> int:
    """Windows of the data's order that the run passes over.

    Raises:
        TrainingError: not a whole number of windows, so that the run's first one would begin within another.
    """
    windows, rest = divmod(training.skipped_tokens, seq_len)
    if rest:
        raise TrainingError(
            "only whole windows can be passed over", field="skip_tokens", found=f"{training.skipped_tokens} tokens",
            expected=f"a multiple of {seq_len}",
            cure=" or ".join(f"--skip-tokens {count * seq_len}" for count in (windows, windows + 1)),
        )  # fmt: skip
    return windows


def plan(training: Training, *, seq_len: int, available: int, processes: int) -> Budget:
    """The sizes of a run.

    Args:
        training: the request.
        seq_len: tokens of a window.
        available: windows of the data, once through.
        processes: that share a batch.

    Raises:
        TrainingError: the data, the budget, the batch and the processes do not fit each other.
    """
    if not available:
        raise TrainingError(
            "the data does not fill one window",
            field="seq_len",
            found=seq_len,
            cure="more data, or a shorter --seq-len",
        )
    skipped = windows_to_skip(training, seq_len)
    batch = training.step_tokens or WINDOWS * seq_len
    windows, rest = divmod(batch, seq_len)
    if rest or not windows:
        near = sorted({max(1, windows) * seq_len, (windows + 1) * seq_len})
        raise TrainingError(
            "a batch is a whole number of windows",
            field="batch_tokens",
            found=f"{batch} tokens",
            expected=f"a multiple of {seq_len}: {' or '.join(map(str, near))}",
        )
    if windows % processes:
        raise TrainingError(
            "the processes cannot share a batch evenly",
            field="batch_tokens",
            found=f"{windows} windows for {processes} processes",
            cure=f"a batch of {-(-windows // processes) * processes * seq_len} tokens",
        )
    share = windows // processes
    micro = training.micro_batch or max(size for size in range(1, min(_MICRO, share) + 1) if share % size == 0)
    if share % micro:
        raise TrainingError(
            "the windows of a process are not a multiple of its forward passes",
            field="micro_batch",
            found=micro,
            expected=f"a divisor of {share}",
        )
    if training.total_tokens is None and skipped >= available:
        raise TrainingError(
            "all of the data is passed over, and nothing says how long the run is", field="skip_tokens",
            found=f"{skipped} windows of {available}", cure="--tokens COUNT, for further epochs",
        )  # fmt: skip
    budget = training.total_tokens or (available - skipped) * seq_len
    if budget < batch:
        what = "the data is" if training.total_tokens is None else "the token budget is"
        raise TrainingError(
            f"{what} smaller than one step",
            field="tokens",
            found=f"{budget} tokens",
            expected=f"at least a batch: {batch} tokens",
            cure="a smaller --batch-tokens, or more tokens",
        )
    return Budget(seq_len, windows, micro, share // micro, budget // batch)
