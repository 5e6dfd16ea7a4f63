"""Splitting columns by the compiled kernels (kernels.py), where numba is installed and they apply.

`split_columns` does what expand.py does, with the same bytes, or says that it did not. HYPERCLONE_KERNELS=off turns
the kernels off.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperclone.expansion import exact_split, noise
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.expansion.shares import Shares
from hyperclone.planning.plan import Plan
from hyperclone.planning.recipe import Expansion, Noise, Recipe

WORTHWHILE = 500_000_000  # weights: below, loading numba takes longer than the kernels save
_UNSIGNED = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}  # how the kernels tell stored types apart


def worthwhile(plan: Plan) -> bool:
    """Whether a model is so large that the kernels save more than loading them takes."""
    return plan.parameters >= WORTHWHILE


@cache
def kernels() -> Any:
    """The compiled kernels; None where they are turned off, or numba is missing or has no directory for them."""
    if os.environ.get("HYPERCLONE_KERNELS") == "off":
        return None
    try:
        from hyperclone.expansion import kernels as compiled
    except (ImportError, RuntimeError):
        return None
    return compiled


def split_columns(
    weight: Tensor,
    grown: Tensor,
    columns: CopyMap,
    numbers: Tensor,
    recipe: Recipe,
    *,
    name: str,
    first_row: int,
    index: Tensor | None,
    power: float | None,
) -> bool:
    """Fill `grown` (R, D) with the shares of `weight` (S, d).

    Args:
        weight, grown: of one type; the second is contiguous.
        columns: which column each new one copies.
        numbers: (R,) which output copy each row is.
        recipe: expansion and noise.
        name: of the tensor.
        first_row: the first row's index in the grown matrix.
        index: (R,) which row of `weight` each new row copies; None for one after the other.
        power: mean square of the whole tensor, for Gaussian noise.

    Returns:
        Whether it was done.
    """
    run = kernels()
    noisy, symmetric = recipe.noise is not Noise.NONE, recipe.expansion is Expansion.SYMMETRIC
    if run is None or not (noisy or symmetric) or not weight.numel():
        return False
    dtype = weight.dtype
    bits = _BITS.get(dtype, dtype)
    numbers_in, numbers_out = weight.contiguous().view(bits).numpy(), grown.view(bits).numpy()
    if dtype is torch.float16 and not run.HALVES:
        return False
    if dtype is torch.bfloat16 and exact_split.largest_size(weight) >= exact_split.ANCHORED:
        return False  # the reference clips there, as it sees fit
    work_type = np.float64 if dtype == torch.float64 else np.float32
    source = (torch.arange(len(grown)) if index is None else index).numpy()
    keys, counter = noise.key(recipe.seed, name), np.uint64(first_row * noise.steps(columns.new))
    for (copies, units, positions), (_, unit_span, position_spans) in zip(columns.groups, columns.spans, strict=True):
        where = source, units.numpy(), positions.numpy(), _steps(*position_spans, unit_span)
        if copies == 1:
            grown[:, position_spans[0]] = weight[:, unit_span] if index is None else weight[index][:, unit_span]
            continue
        if not noisy:
            parts = np.arange(copies, 0, -1).astype(work_type)
            run.even_rows(numbers_in, numbers_out, where, copies & (copies - 1) == 0, parts)
            continue
        shares = Shares.of(copies, recipe)
        scale = shares.scale(recipe.noise, power)
        limits = np.array([shares.first, shares.other, exact_split.ANCHOR, 2.0 ** exact_split.precision(dtype) - 2,
                           torch.finfo(dtype).max], work_type)  # fmt: skip
        stream = numbers.numpy(), not symmetric, keys, counter
        if recipe.noise is Noise.SPLIT:
            unclipped = shares.within and dtype in _BITS
            scale_32 = np.float32(scale)
            run.split_rows(numbers_in, numbers_out, where, stream, scale_32, limits, unclipped)
        else:
            table = noise.normal_quantiles().numpy()
            run.share_rows(numbers_in, numbers_out, where, stream, scale, limits, table)
    return True


def agree(weight: Tensor, grown: Tensor, columns: CopyMap, index: Tensor, *, splits: bool) -> bool:
    """Whether the columns of `grown` (R, D) follow from those of `weight` (S, d), to the bit.

    Args:
        weight, grown: of one type.
        columns: which column each new one copies; there are no padding channels.
        index: (R,) which row of `weight` each new row copies.
        splits: the copies of a column sum to it, exactly (rather than repeat it).

    Returns:
        False where they do not, or where the kernels cannot tell.
    """
    run = kernels()
    dtype, no_kernel = grown.dtype, splits and grown.dtype not in (*_BITS, torch.float32)
    if run is None or weight.dtype != dtype or len(columns.padding) or not grown.numel() or no_kernel:
        return False
    if splits and dtype is torch.float16 and not run.HALVES:
        return False
    bits = _BITS.get(dtype, dtype) if splits else _UNSIGNED[dtype.itemsize]
    numbers_in, numbers_out = (tensor.contiguous().view(bits).numpy() for tensor in (weight, grown))
    check = run.sums_agree if splits else run.repeats_agree
    return all(
        bool(check(numbers_in, numbers_out, (index.numpy(), units.numpy(), positions.numpy(), _steps(*spans, span))))
        for (_, units, positions), (_, span, spans) in zip(columns.groups, columns.spans, strict=True)
    )


def _steps(*spans: slice | Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([span.step or 1 if isinstance(span, slice) else 0 for span in spans])
