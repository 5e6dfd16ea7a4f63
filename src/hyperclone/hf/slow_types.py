"""Types in which this processor multiplies matrices slowly, found by measuring it once.

A processor without instructions for bf16 or fp16 multiplies them one number after another, and in one thread: a product
takes ten times as long as in fp32 on two cores, a hundred times on many.
"""

from __future__ import annotations

import time
from functools import cache

import torch

_SLOW = 4.0  # times as long as in fp32
_TOKENS, _INPUTS, _OUTPUTS = 64, 512, 512  # a product of 34 million operations: 3 ms where a type is slow
_REPEATS = 3  # of which the fastest counts, since others use the processor as well


@cache
def is_slow(dtype: torch.dtype) -> bool:
    """Whether a matrix product takes `_SLOW` times as long as in fp32 with torch's present number of threads."""
    return ratio_to_fp32(dtype) > _SLOW


def ratio_to_fp32(dtype: torch.dtype) -> float:
    """Time of a small matrix product, divided by that of the same in fp32."""
    return _seconds(dtype) / _seconds(torch.float32)


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    x, weight = torch.ones(_TOKENS, _INPUTS, dtype=dtype), torch.ones(_OUTPUTS, _INPUTS, dtype=dtype)
    times = []
    for _ in range(_REPEATS + 1):  # the first one prepares kernels
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times[1:])
