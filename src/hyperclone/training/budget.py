"""From tokens to steps: windows of a batch, how processes and accumulation share them, and how many steps there are.

The global batch is a property of the training, not of the machines: step k trains on the windows k B ... (k+1) B - 1
of the data's order, however many processes share them. So the curve is the same, and a run may go on with other
processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyperclone.errors import TrainingError
from hyperclone.training.config import Training

_SEQUENCE = 1024
_WINDOWS = 64  # of a batch
_MICRO = 8


@dataclass(frozen=True)
class Budget:
    """Sizes of a run.

    Attributes:
        sequence: tokens of a window.
        windows: of a batch, over all processes.
        micro_batch: windows of one forward pass of one process.
        accumulation: forward passes of a process in a step.
        steps: of the optimizer.
    """

    sequence: int
    windows: int
    micro_batch: int
    accumulation: int
    steps: int

    @property
    def batch(self) -> int:
        """Tokens of a step."""
        return self.windows * self.sequence

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return self.steps * self.batch


def sequence_length(wanted: int | None, positions: int | None) -> int:
    """Tokens of a window.

    Args:
        wanted: as asked for.
        positions: of the model; None where nothing limits them.

    Raises:
        TrainingError: longer than the model has positions.
    """
    if wanted is None:
        return min(_SEQUENCE, positions or _SEQUENCE)
    if positions is not None and wanted > positions:
        raise TrainingError(
            "a window is longer than the model has positions",
            field="sequence",
            found=wanted,
            expected=f"{positions} at most",
        )
    if wanted < 2:
        raise TrainingError("nothing can be predicted in a window of one token", field="sequence", found=wanted)
    return wanted


def plan(training: Training, *, sequence: int, available: int, processes: int) -> Budget:
    """The sizes of a run.

    Args:
        training: the request.
        sequence: tokens of a window.
        available: windows of the data.
        processes: that share a batch.

    Raises:
        TrainingError: the data, the budget, the batch and the processes do not fit each other.
    """
    if not available:
        raise TrainingError(
            "the data does not fill one window",
            field="sequence",
            found=sequence,
            cure="more data, or a shorter --sequence",
        )
    batch = training.batch_tokens or _WINDOWS * sequence
    windows, rest = divmod(batch, sequence)
    if rest or not windows:
        near = sorted({max(1, windows) * sequence, (windows + 1) * sequence})
        raise TrainingError(
            "a batch is a whole number of windows",
            field="batch",
            found=f"{batch} tokens",
            expected=f"a multiple of {sequence}: {' or '.join(map(str, near))}",
        )
    if windows % processes:
        raise TrainingError(
            "the processes cannot share a batch evenly",
            field="batch",
            found=f"{windows} windows for {processes} processes",
            cure=f"a batch of {-(-windows // processes) * processes * sequence} tokens",
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
    budget = training.budget or available * sequence
    if budget < batch:
        what = "the data is" if training.budget is None else "the token budget is"
        raise TrainingError(
            f"{what} smaller than one step",
            field="tokens",
            found=f"{budget} tokens",
            expected=f"at least a batch: {batch} tokens",
            cure="a smaller --batch, or more tokens",
        )
    return Budget(sequence, windows, micro, share // micro, budget // batch)
