"""The arithmetic of expand.py in one pass over memory, compiled by numba: the same bytes, several times as fast.

expand.py is the reference: it says what is computed, and runs where numba is missing. Here each row is worked through
in chunks that stay in the first cache; draws are made where they are used. Rounding is that of the reference to the
bit, since every operation is the same IEEE operation in the same order: no fused multiply-add, no reordering.

Stored types are told apart by the type of the arrays: bf16 as uint16, fp16 as int16 (both as bits), fp32, fp64.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

_CHUNK = 512  # units worked on at once: a few arrays of them stay in the first cache
_PHILOX_0, _PHILOX_1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157  # multipliers (Salmon et al. 2011)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)  # key schedule
_ROUNDS = 10
HALVES = get_host_cpu_features().get("f16c", True)  # fp16: x86 processors before 2012 lack the conversion


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


@intrinsic
def _round(typingctx, value):
    """The nearest integer, ties to even; numpy's function is a call for each number."""

    def code(context, builder, signature, arguments):
        kind = arguments[0].type
        nearest = builder.module.declare_intrinsic("llvm.rint", [kind], ir.FunctionType(kind, [kind]))
        return builder.call(nearest, arguments)

    return value(value), code


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


def _widest(stored):
    """A stored number in the type in which exact sums are numbers: fp32, or fp64 for fp32 (exact_split.join_wide)."""


@overload(_widest, inline="always")
def _widest_of(stored):
    if stored is types.float32:
        return lambda stored: np.float64(stored)
    return lambda stored: _wide(stored)


def _same(one, two):
    """Whether two numbers of that type are the same one, the sign of zero included; none is NaN."""


@overload(_same, inline="always")
def _same_as(one, two):
    if one is types.float64:
        return lambda one, two: (one == two) & (_double_bits(one) == _double_bits(two))
    return lambda one, two: (one == two) & (_float_bits(one) == _float_bits(two))


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


def _local(kind_of):
    """An intrinsic for memory of _CHUNK numbers on the stack, of a type that `kind_of` makes of that of `like`.

    The compiler knows that nothing else points there. Between arrays it would have to check whether they overlap, and
    gives up on vector instructions where there are many.
    """

    @intrinsic
    def local(typingctx, like):
        kind = kind_of(like)

        def code(context, builder, signature, arguments):
            memory = cgutils.alloca_once(builder, ir.ArrayType(context.get_data_type(kind), _CHUNK))
            memory.align = 64
            return builder.bitcast(memory, context.get_data_type(kind).as_pointer())

        return types.CPointer(kind)(like), code

    return local


_local_stored = _local(lambda stored: stored)
_local_wide = _local(lambda stored: types.float64 if stored is types.float64 else types.float32)
_local_widest = _local(lambda stored: types.float64 if stored in (types.float32, types.float64) else types.float32)

_compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_inlined = njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)


@_inlined
def _draw_row(key_0, key_1, counter, words):
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


@_inlined
def _gather(numbers, positions, run, start, count, gathered):
    """Take `count` numbers at positions[start:]; `run`: the positions are consecutive.

    Slices first: an index that might be negative, and count from the end, is no consecutive one for the compiler.
    """
    if run:
        chunk = numbers[positions[start] : positions[start] + count]
        for i in range(count):
            gathered[i] = chunk[i]
    else:
        chosen = positions[start : start + count]
        for i in range(count):
            gathered[i] = numbers[chosen[i]]


@_inlined
def _scatter(stored, grown, positions, run, start, count):
    """Put `count` numbers at positions[start:]."""
    if run:
        chunk = grown[positions[start] : positions[start] + count]
        for i in range(count):
            chunk[i] = stored[i]
    else:
        chosen = positions[start : start + count]
        for i in range(count):
            grown[chosen[i]] = stored[i]


@_inlined
def _sum_of_draws(draws, positions, runs, start, count, drawn, total):
    """Sums (count,) of the draws of all copies."""
    for i in range(count):
        total[i] = 0
    for k in range(positions.shape[0]):
        _gather(draws, positions[k], runs[k], start, count, drawn)
        for i in range(count):
            total[i] += np.int32(drawn[i])


@_compiled
def split_rows(weight, grown, where, stream, scale, limits, unclipped):
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
    """
    source, units, positions, runs = where
    numbers, own_first, keys, counter = stream
    copies, blocks, like = positions.shape[0], (grown.shape[1] + 15) // 16, weight[0, 0]
    words, count_32 = np.empty(4 * blocks, np.uint64), np.float32(copies)
    draws = words.view(np.int16)
    anchor_units, reach_units, largest = limits[2], limits[3], limits[4]
    stored, drawn = carray(_local_stored(like), _CHUNK), carray(_local_stored(np.int16(0)), _CHUNK)
    total = carray(_local_stored(np.int32(0)), _CHUNK)
    whole, left = carray(_local_wide(like), _CHUNK), carray(_local_wide(like), _CHUNK)
    for row in range(grown.shape[0]):
        _draw_row(keys[0], keys[1], counter + np.uint64(row * blocks), words)
        first = numbers[row] % copies if own_first else 0
        for start in range(0, units.size, _CHUNK):
            count = min(_CHUNK, units.size - start)
            _sum_of_draws(draws, positions, runs, start, count, drawn, total)
            _gather(weight[source[row]], units, runs[copies], start, count, stored)
            for i in range(count):
                whole[i] = _wide(stored[i])
                left[i] = whole[i]
            for k in range(copies - 1):
                copy = (first + k) % copies
                base = limits[0] if k == 0 else limits[1]
                _gather(draws, positions[copy], runs[copy], start, count, drawn)
                if unclipped:  # exact_split._unclipped: adding and taking away an anchor rounds to whole units
                    for i in range(count):
                        share = (np.float32(drawn[i]) * count_32 - np.float32(total[i])) * scale + base
                        anchor = _unit(whole[i], like) * anchor_units
                        part = (whole[i] * share + anchor) - anchor
                        left[i] -= part
                        stored[i] = _narrow(part if whole[i] != 0 else whole[i], like)
                else:  # exact_split.split_by_shares: what is left is a number of the type
                    for i in range(count):
                        share = (np.float32(drawn[i]) * count_32 - np.float32(total[i])) * scale
                        unit = _unit(whole[i], like)
                        part = _round(whole[i] / unit * (type(base)(share) + base)) * unit
                        low, high = left[i] - unit * reach_units, left[i] + unit * reach_units
                        part = part if part > low else low  # at ties the bound, whose zero may have another sign
                        part = part if part < high else high
                        part = part if part > -largest else -largest
                        part = part if part < largest else largest
                        narrow = _narrow(part if whole[i] != 0 else whole[i], like)
                        stored[i] = narrow
                        left[i] -= _wide(narrow)
                _scatter(stored, grown[row], positions[copy], runs[copy], start, count)
            for i in range(count):
                stored[i] = _narrow(left[i] if whole[i] != 0 else whole[i], like)
            copy = (first + copies - 1) % copies
            _scatter(stored, grown[row], positions[copy], runs[copy], start, count)


@_compiled
def share_rows(weight, grown, where, stream, scale, limits, table):
    """Fill the columns of units with c copies: shares with Gaussian noise (Noise.GAUSSIAN).

    Args:
        scale: what the noise is multiplied by, fp64.
        table: (65536,) fp32 normal quantiles (noise.normal_quantiles).
        weight, grown, where, stream, limits: as in `split_rows`.
    """
    source, units, positions, runs = where
    numbers, own_first, keys, counter = stream
    copies, blocks, like = positions.shape[0], (grown.shape[1] + 15) // 16, weight[0, 0]
    words, count_64 = np.empty(4 * blocks, np.uint64), np.float64(copies)
    draws, values = words.view(np.int16), np.empty((copies, _CHUNK), np.float32)
    stored, drawn = carray(_local_stored(like), _CHUNK), carray(_local_stored(np.int16(0)), _CHUNK)
    total, whole = carray(_local_wide(np.float64(0)), _CHUNK), carray(_local_wide(like), _CHUNK)
    for row in range(grown.shape[0]):
        _draw_row(keys[0], keys[1], counter + np.uint64(row * blocks), words)
        first = numbers[row] % copies if own_first else 0
        for start in range(0, units.size, _CHUNK):
            count = min(_CHUNK, units.size - start)
            for k in range(copies):
                copy = (first + k) % copies
                _gather(draws, positions[copy], runs[copy], start, count, drawn)
                for i in range(count):
                    values[k, i] = table[np.int32(drawn[i]) + 32768]
                for i in range(count):  # in this order: sums of these are rounded
                    total[i] = np.float64(values[k, i]) + (total[i] if k else 0.0)
            _gather(weight[source[row]], units, runs[copies], start, count, stored)
            for i in range(count):
                whole[i] = _wide(stored[i])
            for k in range(copies):
                copy = (first + k) % copies
                base = limits[0] if k == 0 else limits[1]
                for i in range(count):
                    noise = (np.float64(values[k, i]) * count_64 - total[i]) * scale
                    stored[i] = _narrow(whole[i] * base + type(base)(noise), like)
                _scatter(stored, grown[row], positions[copy], runs[copy], start, count)


@_compiled
def even_rows(weight, grown, where, power_of_two, parts):
    """Fill the columns of units with c copies: equal parts (exact_split.split_evenly).

    Args:
        power_of_two: c is one.
        parts: (c,) of the arithmetic type: c, c - 1, .., 1.
        weight, grown, where: as in `split_rows`.
    """
    source, units, positions, runs = where
    copies, like = positions.shape[0], weight[0, 0]
    stored, whole = carray(_local_stored(like), _CHUNK), carray(_local_wide(like), _CHUNK)
    left, even = carray(_local_wide(like), _CHUNK), carray(_local_stored(like), _CHUNK)
    for row in range(grown.shape[0]):
        for start in range(0, units.size, _CHUNK):
            count = min(_CHUNK, units.size - start)
            _gather(weight[source[row]], units, runs[copies], start, count, stored)
            exact = power_of_two
            for i in range(count):
                whole[i] = _wide(stored[i])
                even[i] = _narrow(whole[i] / parts[0], like)
                exact &= _wide(even[i]) * parts[0] == whole[i]
            if exact:
                for k in range(copies):
                    _scatter(even, grown[row], positions[k], runs[k], start, count)
                continue
            for i in range(count):
                left[i] = whole[i] / _unit(whole[i], like)
            for k in range(copies):
                for i in range(count):
                    part = _round(left[i] / parts[k])
                    left[i] -= part
                    same = (whole[i] == 0) | (power_of_two & (_wide(even[i]) * parts[0] == whole[i]))
                    stored[i] = even[i] if same else _narrow(part * _unit(whole[i], like), like)
                _scatter(stored, grown[row], positions[k], runs[k], start, count)


@_compiled
def sums_agree(weight, grown, where):
    """Whether the c parts of each weight sum to it, to the bit (bf16, fp16 and fp32).

    Args:
        weight, grown, where: as in `split_rows`.
    """
    source, units, positions, runs = where
    copies, like = positions.shape[0], weight[0, 0]
    stored, total = carray(_local_stored(like), _CHUNK), carray(_local_widest(like), _CHUNK)
    for row in range(grown.shape[0]):
        for start in range(0, units.size, _CHUNK):
            count = min(_CHUNK, units.size - start)
            for k in range(copies):
                _gather(grown[row], positions[k], runs[k], start, count, stored)
                if k == 0:
                    for i in range(count):
                        total[i] = _widest(stored[i])
                else:
                    for i in range(count):
                        total[i] += _widest(stored[i])
            _gather(weight[source[row]], units, runs[copies], start, count, stored)
            agree = True
            for i in range(count):
                agree &= _same(total[i], _widest(stored[i]))
            if not agree:
                return False
    return True


@_compiled
def repeats_agree(weight, grown, where):
    """Whether all c copies of each weight are it, as unsigned bits.

    Args:
        weight, grown, where: as in `split_rows`.
    """
    source, units, positions, runs = where
    copies, like = positions.shape[0], weight[0, 0]
    stored, copied = carray(_local_stored(like), _CHUNK), carray(_local_stored(like), _CHUNK)
    for row in range(grown.shape[0]):
        for start in range(0, units.size, _CHUNK):
            count = min(_CHUNK, units.size - start)
            _gather(weight[source[row]], units, runs[copies], start, count, stored)
            agree = True
            for k in range(copies):
                _gather(grown[row], positions[k], runs[k], start, count, copied)
                for i in range(count):
                    agree &= copied[i] == stored[i]
            if not agree:
                return False
    return True
