"""Exact split: write a floating-point number as a sum of c numbers of its own type, with no rounding at all.

A finite number is M u: an integer mantissa times its unit in the last place. Integers add exactly, so split M and
not the real number: part_b = round(M t_b), and the last part is what remains. Each part is a whole number of u, and
a whole number of units below 2^p (p = 8 for bf16, 11 for fp16, 24 for fp32, 53 for fp64) is a number of the same type.

Why the remainder always fits. Let L = 2^p - 2 and let R be what remains, |R| <= 2^p - 1 at the start. Clip a part to
R - L .. R + L. It is then below 2^(p+1), where the type holds every even integer, so storing it moves it by at most
one unit and leaves |R| <= L + 1 = 2^p - 1 again. Clipping to the largest finite number only moves a part towards
zero, which is towards R. So the last part is always a number of the type, for every c and every t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# bits of the significand, the hidden one included
_PRECISION = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which weights of `dtype` are computed: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def precision(dtype: torch.dtype) -> int:
    """Bits of the significand, the hidden one included."""
    return _PRECISION[dtype]


def unit_in_last_place(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of `dtype` at each weight (given in its arithmetic type): a power of two, exact."""
    if weight.dtype == torch.float64:
        power = (weight.view(torch.int64) & 0x7FF0_0000_0000_0000).view(torch.float64)
    else:
        power = (weight.view(torch.int32) & 0x7F80_0000).view(torch.float32)
    return power.clamp_(min=torch.finfo(dtype).smallest_normal).mul_(2.0 ** (1 - precision(dtype)))


def largest_size(numbers: Tensor) -> float:
    """The largest absolute value; NaN or infinite where a number is. Several times as fast as `abs().amax()`."""
    if not numbers.numel():
        return 0.0
    low, high = numbers.aminmax()
    return max(-float(low), float(high)) if low == low else math.nan


def all_finite(numbers: Tensor) -> bool:
    """Whether no number is infinite or NaN."""
    return math.isfinite(largest_size(numbers))


def split_by_shares(weight: Tensor, shares: Sequence[Tensor | float], *, within: bool = False) -> list[Tensor]:
    """Split every weight into parts in given proportions; the last part is the remainder.

    Args:
        weight: finite, any shape, bf16 / fp16 / fp32 / fp64.
        shares: proportions of all parts but the last, each a number or a tensor of the weight's shape in its
            arithmetic type; the last part is what they leave.
        within: all shares, the last one too, are known to lie in 0 .. 1, so that nothing needs to be clipped.

    Returns:
        one tensor more than shares, of the weight's shape and type; their sum is the weight, bit for bit.
    """
    dtype = weight.dtype
    whole = weight.to(arithmetic_type(dtype)).contiguous()
    unit = unit_in_last_place(whole, dtype)
    if within and dtype in (torch.bfloat16, torch.float16) and largest_size(whole) < ANCHORED:
        return _keep_negative_zero(weight, _unclipped(whole, unit, shares, dtype))
    mantissa = whole / unit
    reach = unit * float(2 ** precision(dtype) - 2)
    largest = torch.finfo(dtype).max
    left = whole
    parts = []
    for share in shares:
        part = (mantissa * share).round_().mul_(unit)
        low, high = left - reach, left + reach
        part = torch.where(part > low, part, low)  # at ties the bound: `clamp` takes either zero, by position
        part = torch.where(part < high, part, high)
        stored = part.clamp_(-largest, largest).to(dtype)
        left = left - stored.to(left.dtype)
        parts.append(stored)
    parts.append(left.to(dtype))
    return _keep_negative_zero(weight, parts)


ANCHOR = 1.5 * 2**23  # units
ANCHORED = 2.0**100  # below this, 1.5 x 2^23 units of bf16 are a number of fp32


def _unclipped(whole: Tensor, unit: Tensor, shares: Sequence[Tensor | float], dtype: torch.dtype) -> list[Tensor]:
    """The same with fewer passes over memory.

    The unit in the last place of 1.5 x 2^23 u in fp32 is u, so adding and taking away that anchor rounds to whole
    units. Parts in 0 .. M and a remainder in -c/2 .. M need no clipping.
    """
    anchor = unit.mul_(ANCHOR)
    left = whole
    parts = []
    for share in shares:
        part = (whole * share).add_(anchor).sub_(anchor)
        parts.append(part.to(dtype))
        left = left - part
    parts.append(left.to(dtype))
    return parts


def split_evenly(weight: Tensor, c: int) -> list[Tensor]:
    """Split every weight into c parts that are as equal as its type allows; their sum is the weight, bit for bit.

    For c a power of two the parts are W/c exactly, except where that falls below the smallest subnormal. Otherwise
    W/c is seldom a number of the type, and parts differ by at most one unit in the last place of W.
    """
    dtype = weight.dtype
    whole = weight.to(arithmetic_type(dtype)).contiguous()
    even = (whole / c).to(dtype)
    power_of_two = c & (c - 1) == 0
    if power_of_two and bool((exact := even.to(whole.dtype) * c == whole).all()):
        return [even] * c
    unit = unit_in_last_place(whole, dtype)
    left = whole / unit
    parts = []
    for k in range(c):
        part = (left / (c - k)).round_()
        left = left - part
        stored = (part * unit).to(dtype)
        parts.append(torch.where(exact, even, stored) if power_of_two else stored)
    return _keep_negative_zero(weight, parts)


def join(parts: Sequence[Tensor]) -> Tensor:
    """The exact sum of parts made by this module, in their type."""
    return join_wide(parts).to(parts[0].dtype)


def join_wide(parts: Sequence[Tensor]) -> Tensor:
    """The sum one type wider, where sums of these integers are exact: fp32, or fp64 for fp32 and fp64.

    Nothing is wider than fp64, so there the rounding errors are carried along (two-sum, Knuth 4.2.2).
    """
    total = _sum(parts)
    overflown = ~total.isfinite()
    if bool(overflown.any()):
        # bf16 and fp64 reach as far as the type they are summed in, so near the largest number the sum of some parts
        # may overflow where the sum of all does not. Parts that large can be scaled down and back without rounding.
        total = torch.where(overflown, _sum([part * 2.0**-8 for part in parts]) * 2.0**8, total)
    return total


def _sum(parts: Sequence[Tensor]) -> Tensor:
    dtype = parts[0].dtype
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else torch.float64
    total = parts[0].to(wide)
    if dtype != torch.float64:
        for part in parts[1:]:
            total = total + part.to(wide)
        return total
    carried = torch.zeros_like(total)
    for part in parts[1:]:
        both = total + part
        virtual = both - total
        carried = carried + ((total - (both - virtual)) + (part - virtual))
        total = both
    return torch.where(carried == 0, total, total + carried)  # adding +0.0 would lose the sign of -0.0


def _keep_negative_zero(weight: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """-0.0 is the sum of nothing but negative zeros; round() of a negative share of it would be +0.0."""
    zero = weight == 0
    if bool(zero.any()):
        return [torch.where(zero, weight, part) for part in parts]
    return parts
