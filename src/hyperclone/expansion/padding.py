"""Padding channels: new units that copy nothing, so that the hidden state can grow to any size, not only to multiples.

Let the hidden size grow from d to D = k d + r. The first k d channels are copies; the r channels left over are padding.
Neither norms nor what reads the hidden state may see them.

*RMSNorm*: padding holds zero. The mean square over D channels is then k d / D times the old one, so the norm's output
comes out sqrt(D / (k d)) times too large; gains times sqrt(k d / D) and eps times k d / D correct for it.
*LayerNorm*: padding holds the mean of the other channels. The mean stays, the deviation of padding is zero, and the
variance is k d / D times the old one: the same gains and eps. The mean of d channels is written by the mean of their d
rows.

Either way a norm gives 0 x gain (+ bias) for a padding channel, so its bias there is zero, and what reads the channel
reads zero. Those weights are free: they are randomly initialized, and give the new channels something to learn with.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from hyperclone.expansion import noise
from hyperclone.expansion.copy_map import CopyMap


class Padding(StrEnum):
    """What padding channels hold in one dimension of a tensor."""

    ZERO = "zero"  # they write zero
    MEAN = "mean"  # they write the mean of the old units
    REPEAT = "repeat"  # a gain: whatever old unit i mod d has
    RANDOM = "random"  # they read zero


def pad_rows(block: Tensor, rows: CopyMap, chosen: range, padding: Padding, mean: Tensor | None) -> Tensor:
    """Source rows (R, d_in) of the new rows `chosen`, with those of padding channels replaced.

    Args:
        mean: (d_in,) mean of all source rows, for Padding.MEAN.
    """
    is_padding = rows.count[chosen.start : chosen.stop] == 0
    if padding is Padding.REPEAT or not bool(is_padding.any()):
        return block
    assert padding is not Padding.RANDOM
    if padding is Padding.MEAN:
        assert mean is not None
        return torch.where(is_padding[:, None], mean.to(block.dtype), block)
    return torch.where(is_padding[:, None], torch.zeros((), dtype=block.dtype), block)


def padding_columns(block: Tensor, columns: CopyMap, padding: Padding, *, name: str) -> Tensor:
    """What the P padding columns hold, for source rows (R, d): (R, P). For random ones see `random_columns`."""
    if padding is Padding.REPEAT:
        return block[:, columns.source[columns.padding]]
    if padding is Padding.ZERO:
        return torch.zeros(len(block), len(columns.padding), dtype=block.dtype)
    assert padding is Padding.MEAN, name
    return block.double().mean(1, keepdim=True).to(block.dtype).expand(-1, len(columns.padding))


def random_columns(columns: CopyMap, *, seed: int, name: str, rows: range, power: float) -> Tensor:
    """(R, P) normal weights with mean square `power` for the padding columns, in fp32."""
    draws = noise.draws(seed, name, rows=rows, columns=columns.new)[:, columns.padding]
    return noise.normal(draws) * math.sqrt(power)
