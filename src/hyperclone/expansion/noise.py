"""Random numbers as a pure function of (seed, tensor name, position).

The bytes of a grown checkpoint must not depend on shards, threads or the order of work, so every output weight has
its own 16-bit draw: number `column` of row `row` in the Philox stream keyed by a hash of seed and tensor name
(Salmon et al. 2011; the stream of numpy's bit generator is stable by policy). Everything downstream is IEEE
arithmetic that every machine rounds alike.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

_DRAWS_PER_STEP = 16  # one Philox4x64 counter step gives 256 bits


def draws(seed: int, name: str, *, rows: range, columns: int) -> Tensor:
    """One signed 16-bit draw for every weight of some rows, uniform over -32768..32767.

    Returns:
        (len(rows), columns) int16; the same numbers however the rows are cut into ranges.
    """
    # The raw words: numpy keeps the stream of a bit generator, but not what a Generator makes of it.
    stream = np.random.Philox(key=key(seed, name), counter=rows.start * steps(columns))
    words = stream.random_raw(len(rows) * steps(columns) * 4)
    values = torch.from_numpy(words.astype("<u8", copy=False).view("<i2"))
    return values.view(len(rows), steps(columns) * _DRAWS_PER_STEP)[:, :columns]


def key(seed: int, name: str) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """(2,) the Philox key of a tensor."""
    return np.frombuffer(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest(), dtype="<u8")


def steps(columns: int) -> int:
    """Counter steps of a row; each row starts on one, so that it can be reached directly."""
    return -(-columns // _DRAWS_PER_STEP)


def normal(draws: Tensor) -> Tensor:
    """Standard normal numbers (float32) from 16-bit draws."""
    return normal_quantiles()[draws.to(torch.int32) + 32768]


@cache
def normal_quantiles() -> Tensor:
    """(65536,) float32: standard normal quantile of each 16-bit draw, at index draw + 32768; |z| < 4.33."""
    normal = NormalDist()
    table = [normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)]
    deviation = math.sqrt(math.fsum(z * z for z in table) / len(table))
    return (torch.tensor(table, dtype=torch.float64) / deviation).float()
