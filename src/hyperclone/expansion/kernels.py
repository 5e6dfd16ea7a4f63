"""The arithmetic of expand.py in one pass over memory, compiled by numba: the same bytes, several times as fast.

expand.py is the reference: it says what is computed, and runs where numba is missing. Here each row is worked through
in chunks that stay in the first cache; draws are made where they are used. Rounding is that of the reference to the
bit, since every operation is the same IEEE operation in the same order: no fused multiply-add, no reordering.

Stored types are told apart by the type of the arrays: bf16 as uint16, fp16 as int16 (both as bits), fp32, fp64.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

_CHUNK = 512  # units worked on at once
_PHILOX_0, _PHILOX_1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157  # multipliers (Salmon et al. 2011)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)  # key schedule
_ROUNDS = 10


def _reinterpreting(source, target):
    """An intrinsic that takes the bits of one type for another."""

    @intrinsic
    def reinterpret(typingctx, value):
        def code(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), code

    return reinterpret


_float_bits, _bits_float = _reinterpreting(types.float32, types.uint32), _reinterpreting(types.uint32, types.float32)
_double_bits, _bits_double = _reinterpreting(types.float64, types.uint64), _reinterpreting(types.uint64, types.float64)


@intrinsic
def _half_to_float(typingctx, bits):
    def code(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), code


@intrinsic
def _float_to_half(typingctx, value):
    def code(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), code


def _wide(stored):
    """A stored number in its arithmetic type: fp32, or fp64 for fp64."""


@overload(_wide, inline="always")
def _wide_of(stored):
    if stored is types.uint16:
        return lambda stored: _bits_float(np.uint32(stored) << np.uint32(16))
    if stored is types.int16:
        return lambda stored: _half_to_float(stored)
    return lambda stored: stored


def _narrow(value, like):
    """A number rounded to the stored type of `like`, to nearest, ties to even."""


@overload(_narrow, inline="always")
def _narrow_of(value, like):
    if like is types.uint16:

        def bf16(value, like):
            bits = _float_bits(value)
            return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return bf16
    if like is types.int16:
        return lambda value, like: _float_to_half(value)
    return lambda value, like: value


def _unit(value, like):
    """The unit in the last place of the type of `like` at a number of the arithmetic type."""


@overload(_unit, inline="always")
def _unit_of(value, like):
    if like is types.uint16:
        return lambda value, like: (
            max(_bits_float(_float_bits(value) & np.uint32(0x7F800000)), np.float32(2.0**-126)) * np.float32(2.0**-7)
        )
    if like is types.int16:
        return lambda value, like: (
            max(_bits_float(_float_bits(value) & np.uint32(0x7F800000)), np.float32(2.0**-14)) * np.float32(2.0**-10)
        )
    if like is types.float32:
        return lambda value, like: (
            max(_bits_float(_float_bits(value) & np.uint32(0x7F800000)), np.float32(2.0**-126)) * np.float32(2.0**-23)
        )
    return lambda value, like: (
        max(_bits_double(_double_bits(value) & np.uint64(0x7FF0000000000000)), 2.0**-1022) * 2.0**-52
    )


@intrinsic
def _philox_round(typingctx, c0, c1, c2, c3, k0, k1):
    """One round of Philox4x64."""

    def code(context, builder, signature, arguments):
        wide, word = ir.IntType(128), ir.IntType(64)
        c0, c1, c2, c3, k0, k1 = arguments

        def product(counter, multiplier):
            whole = builder.mul(builder.zext(counter, wide), ir.Constant(wide, multiplier))
            return builder.trunc(builder.lshr(whole, ir.Constant(wide, 64)), word), builder.trunc(whole, word)

        (high_0, low_0), (high_1, low_1) = product(c0, _PHILOX_0), product(c2, _PHILOX_1)
        new = builder.xor(builder.xor(high_1, c1), k0), low_1, builder.xor(builder.xor(high_0, c3), k1), low_0
        return context.make_tuple(builder, signature.return_type, new)

    return types.UniTuple(types.uint64, 4)(*[types.uint64] * 6), code


@njit(nogil=True, cache=True, boundscheck=False)
def draw_row(key_0, key_1, counter, words):
    """Fill a row with the words that noise.draws cuts into 16-bit draws, four for each step of the counter.

    Args:
        key_0, key_1: the Philox key.
        counter: of the row's first step, less 1, as numpy counts.
        words: (4 n,) uint64.
    """
    zero = np.uint64(0)
    for step in range(words.size // 4):
        c0, c1, c2, c3 = counter + np.uint64(step + 1), zero, zero, zero
        k0, k1 = key_0, key_1
        for _ in range(_ROUNDS):
            c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1)
            k0 += _WEYL_0
            k1 += _WEYL_1
        at = 4 * step
        words[at], words[at + 1], words[at + 2], words[at + 3] = c0, c1, c2, c3


_compiled = njit(nogil=True, cache=True, boundscheck=False)


@_compiled
def largest_bits(weight):
    """The largest bits of bf16 numbers (R, d) without their signs: those of the largest number."""
    largest = np.uint16(0)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            largest = max(largest, weight[row, column] & np.uint16(0x7FFF))
    return largest


@_compiled
def all_finite(bits, exponent):
    """Whether in no number (N,) all bits of the exponent are set."""
    finite = True
    for i in range(bits.size):
        finite &= (bits[i] & exponent) != exponent
    return finite


@_compiled
def _load(weight, units, run, start, stop, whole, left, unit):
    """Weights of a row's units start..stop in the arithmetic type, and their units in the last place."""
    like = weight[0]
    if run:
        first = units[start]
        for i in range(stop - start):
            value = _wide(weight[first + i])
            whole[i], left[i], unit[i] = value, value, _unit(value, like)
    else:
        for i in range(stop - start):
            value = _wide(weight[units[start + i]])
            whole[i], left[i], unit[i] = value, value, _unit(value, like)


@_compiled
def _load_draws(draws, positions, run, start, stop, values):
    if run:
        first = positions[start]
        for i in range(stop - start):
            values[i] = draws[first + i]
    else:
        for i in range(stop - start):
            values[i] = draws[positions[start + i]]


@_compiled
def _store(stored, grown, positions, run, start, stop):
    if run:
        first = positions[start]
        for i in range(stop - start):
            grown[first + i] = stored[i]
    else:
        for i in range(stop - start):
            grown[positions[start + i]] = stored[i]


@_compiled
def _unclipped(values, total, copies, scale, base, anchor_units, whole, left, unit, stored, count):
    """One part of each weight, rounded to whole units by adding and taking away an anchor (exact_split._unclipped)."""
    like = stored[0]
    for i in range(count):
        share = (values[i] * copies - total[i]) * scale + base
        anchor = unit[i] * anchor_units
        part = (whole[i] * share + anchor) - anchor
        left[i] -= part
        stored[i] = _narrow(part if whole[i] != 0 else whole[i], like)


@_compiled
def _clipped(values, total, copies, scale, base, reach_units, largest, whole, left, unit, stored, count):
    """One part of each weight, clipped so that what is left is a number of the type (exact_split.split_by_shares)."""
    like = stored[0]
    for i in range(count):
        share = type(base)((values[i] * copies - total[i]) * scale) + base
        part = np.rint(whole[i] / unit[i] * share) * unit[i]
        reach = unit[i] * reach_units
        low, high = left[i] - reach, left[i] + reach
        part = part if part > low else low  # at ties the bound, whose zero may have another sign
        part = part if part < high else high
        part = part if part > -largest else -largest
        part = part if part < largest else largest
        stored[i] = _narrow(part if whole[i] != 0 else whole[i], like)
        left[i] -= _wide(stored[i])


@_compiled
def _rounded(values, total, copies, scale, base, table, whole, stored, count):
    """One share of each weight with Gaussian noise, rounded to the stored type (expand._shares)."""
    like = stored[0]
    for i in range(count):
        noise = (np.float64(values[i]) * copies - total[i]) * scale
        stored[i] = _narrow(whole[i] * base + type(base)(noise), like)


@_compiled
def share_rows(weight, grown, where, stream, scale, limits, table, work, stored):
    """Fill the columns of units with c copies: shares with Gaussian noise (Noise.GAUSSIAN).

    Args:
        scale: what the noise is multiplied by, fp64.
        table: (65536,) fp32 normal quantiles (noise.normal_quantiles).
        weight, grown, where, stream, limits, work, stored: as in `split_rows`.
    """
    source, units, positions, runs = where
    numbers, own_first, keys, counter = stream
    copies, chunk = positions.shape[0], stored.size
    blocks = (grown.shape[1] + 15) // 16
    words, count_64 = np.empty(4 * blocks, np.uint64), np.float64(copies)
    draws = words.view(np.int16)
    values, total = np.empty((copies, chunk), np.float32), np.empty(chunk, np.float64)
    whole, left, unit = work[0], work[1], work[2]
    for row in range(grown.shape[0]):
        draw_row(keys[0], keys[1], counter + np.uint64(row * blocks), words)
        first = numbers[row] % copies if own_first else 0
        for start in range(0, units.size, chunk):
            stop = min(start + chunk, units.size)
            count = stop - start
            for k in range(copies):
                copy = (first + k) % copies
                for i in range(count):
                    values[k, i] = table[np.int32(draws[positions[copy, start + i]]) + 32768]
            for i in range(count):
                total[i] = np.float64(values[0, i]) + np.float64(values[1, i])
            for k in range(2, copies):
                for i in range(count):
                    total[i] += np.float64(values[k, i])
            _load(weight[source[row]], units, runs[copies], start, stop, whole, left, unit)
            for k in range(copies):
                copy = (first + k) % copies
                base = limits[0] if k == 0 else limits[1]
                _rounded(values[k], total, count_64, scale, base, table, whole, stored, count)
                _store(stored, grown[row], positions[copy], runs[copy], start, stop)


@_compiled
def _even_part(parts, copies, power_of_two, whole, left, unit, stored, count):
    """One of equal parts of each weight; `parts` are still to come, this one included."""
    like = stored[0]
    for i in range(count):
        part = np.rint(left[i] / parts)
        left[i] -= part
        even = _narrow(whole[i] / copies, like)
        exact = whole[i] == 0 or (power_of_two and _wide(even) * copies == whole[i])
        stored[i] = even if exact else _narrow(part * unit[i], like)


@_compiled
def even_rows(weight, grown, where, power_of_two, parts, work, stored):
    """Fill the columns of units with c copies: equal parts (exact_split.split_evenly).

    Args:
        power_of_two: c is one.
        parts: (c,) of the arithmetic type: c, c - 1, .., 1.
        weight, grown, where, work, stored: as in `split_rows`.
    """
    source, units, positions, runs = where
    copies, chunk = positions.shape[0], stored.size
    whole, left, unit = work[0], work[1], work[2]
    for row in range(grown.shape[0]):
        for start in range(0, units.size, chunk):
            stop = min(start + chunk, units.size)
            count = stop - start
            _load(weight[source[row]], units, runs[copies], start, stop, whole, left, unit)
            for i in range(count):
                left[i] = whole[i] / unit[i]
            for k in range(copies):
                _even_part(parts[k], parts[0], power_of_two, whole, left, unit, stored, count)
                _store(stored, grown[row], positions[k], runs[k], start, stop)


@_compiled
def split_rows(weight, grown, where, stream, scale, limits, unclipped, work, stored):
    """Fill the columns of units with c copies: an exact split with noise (expand._split_columns, Noise.SPLIT).

    Args:
        weight: (S, d) stored numbers.
        grown: (R, D) the output.
        where: source (R,), the row of `weight` that each new row copies; units (J,), columns of the weight; positions
            (c, J), columns of the output; runs (c + 1,), whether each row of positions, and last the units, are
            consecutive.
        stream: numbers (R,), which output copy each row is; own_first, whether the row's own copy holds the weight
            (diagonal); keys (2,), of the Philox stream; counter, steps of the stream before the first row.
        scale: what the noise is multiplied by, fp32.
        limits: (5,) of the arithmetic type: share of the first copy and of the others without noise, 1.5 x 2^23,
            2^p - 2, the largest number.
        unclipped: weights are bf16 or fp16, and parts need no clipping.
        work: (3, CHUNK) scratch of the arithmetic type.
        stored: (CHUNK,) scratch of the stored type.
    """
    source, units, positions, runs = where
    numbers, own_first, keys, counter = stream
    copies, chunk = positions.shape[0], stored.size
    blocks = (grown.shape[1] + 15) // 16
    words, count_32 = np.empty(4 * blocks, np.uint64), np.float32(copies)
    draws = words.view(np.int16)
    values, total = np.empty((copies, chunk), np.float32), np.empty(chunk, np.float32)
    whole, left, unit = work[0], work[1], work[2]
    for row in range(grown.shape[0]):
        draw_row(keys[0], keys[1], counter + np.uint64(row * blocks), words)
        first = numbers[row] % copies if own_first else 0
        for start in range(0, units.size, chunk):
            stop = min(start + chunk, units.size)
            count = stop - start
            for k in range(copies):
                copy = (first + k) % copies
                _load_draws(draws, positions[copy], runs[copy], start, stop, values[k])
            for i in range(count):
                total[i] = values[0, i] + values[1, i]
            for k in range(2, copies):
                for i in range(count):
                    total[i] += values[k, i]
            _load(weight[source[row]], units, runs[copies], start, stop, whole, left, unit)
            for k in range(copies):
                copy = (first + k) % copies
                base = limits[0] if k == 0 else limits[1]
                if k == copies - 1:
                    for i in range(count):
                        stored[i] = _narrow(left[i] if whole[i] != 0 else whole[i], stored[0])
                elif unclipped:
                    _unclipped(values[k], total, count_32, scale, base, limits[2], whole, left, unit, stored, count)
                else:
                    _clipped(values[k], total, count_32, scale, base, limits[3], limits[4], whole, left, unit, stored,
                             count)  # fmt: skip
                _store(stored, grown[row], positions[copy], runs[copy], start, stop)
