"""What the new units hold that copy nothing: any width for the hidden state, not only multiples.

Let the hidden size grow from d to D = k d + r. The first k d channels are copies; r channels are left over. They must
not be seen: neither by norms nor by what reads the hidden state.

*RMSNorm*: let them hold zero. The mean square over D channels is then k d / D times the old one, so the norm's
output comes out sqrt(D / (k d)) times too large; gains times sqrt(k d / D) and eps times k d / D put it right.
*LayerNorm*: let them hold the mean of the others. The mean stays, each filler's deviation is zero, and the variance is
k d / D times the old one: the same gains and eps. What writes the mean of d channels is the mean of their d rows.

Either way a norm gives 0 x gain (+ bias) at a filler, so its bias there is zero, and what reads a filler reads zero:
those weights are *free*. They are drawn at random, like fresh ones, and give the new channels something to learn with.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from hyperclone.expansion import noise
from hyperclone.expansion.copy_map import CopyMap


class Fill(StrEnum):
    """What a filler holds in one dimension of a tensor."""

    ZERO = "zero"  # it writes zero
    MEAN = "mean"  # it writes the mean of the old units
    KEEP = "keep"  # a gain: whatever old unit i mod d has
    FREE = "free"  # it reads zero: random


def fill_rows(block: Tensor, rows: CopyMap, chosen: range, fill: Fill, mean: Tensor | None) -> Tensor:
    """Source rows (R, d_in) of the new rows `chosen`, with those of fillers replaced.

    Args:
        mean: (d_in,) mean of all source rows, for Fill.MEAN.
    """
    fillers = rows.count[chosen.start : chosen.stop] == 0
    if fill is Fill.KEEP or not bool(fillers.any()):
        return block
    assert fill is not Fill.FREE
    if fill is Fill.MEAN:
        assert mean is not None
        return torch.where(fillers[:, None], mean.to(block.dtype), block)
    return torch.where(fillers[:, None], torch.zeros((), dtype=block.dtype), block)


def fill_columns(block: Tensor, columns: CopyMap, fill: Fill, *, name: str) -> Tensor:
    """What the fillers among the columns hold, for source rows (R, d): (R, F). Free ones: see `free_columns`."""
    if fill is Fill.KEEP:
        return block[:, columns.source[columns.fillers]]
    if fill is Fill.ZERO:
        return torch.zeros(len(block), len(columns.fillers), dtype=block.dtype)
    assert fill is Fill.MEAN, name
    return block.double().mean(1, keepdim=True).to(block.dtype).expand(-1, len(columns.fillers))


def free_columns(columns: CopyMap, *, seed: int, name: str, rows: range, power: float) -> Tensor:
    """(R, F) normal weights with mean square `power` for the fillers among the columns, in fp32."""
    drawn = noise.draws(seed, name, rows=rows, columns=columns.new)[:, columns.fillers]
    return noise.normal(drawn) * math.sqrt(power)
