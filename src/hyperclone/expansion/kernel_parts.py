"""What the kernels (kernels.py) are made of: types of numbers, rounding, draws, memory on the stack, columns.

Stored types are told apart by the type of the arrays: bf16 as uint16, fp16 as int16 (both as bits), fp32, fp64.
numba keeps compiled kernels until kernels.py changes: touch that file after a change here.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

CHUNK = 512  # units worked on at once: a few arrays of them stay in the first cache
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
def nearest(typingctx, value):
    """The nearest integer, ties to even; numpy's function is a call for each number."""

    def code(context, builder, signature, arguments):
        kind = arguments[0].type
        nearest = builder.module.declare_intrinsic("llvm.rint", [kind], ir.FunctionType(kind, [kind]))
        return builder.call(nearest, arguments)

    return value(value), code


def wide(stored):
    """A stored number in its arithmetic type: fp32, or fp64 for fp64."""


@overload(wide, inline="always")
def _wide_of(stored):
    if stored is types.uint16:
        return lambda stored: _bits_float(np.uint32(stored) << np.uint32(16))
    if stored is types.int16:
        return lambda stored: _half_to_float(stored)
    return lambda stored: stored


def narrow(value, like):
    """A number rounded to the stored type of `like`, to nearest, ties to even."""


@overload(narrow, inline="always")
def _narrow_of(value, like):
    if like is types.uint16:

        def bf16(value, like):
            bits = _float_bits(value)
            return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return bf16
    if like is types.int16:
        return lambda value, like: _float_to_half(value)
    return lambda value, like: value


def widest(stored):
    """A stored number in the type in which exact sums are numbers: fp32, or fp64 for fp32 (exact_split.join_wide)."""


@overload(widest, inline="always")
def _widest_of(stored):
    if stored is types.float32:
        return lambda stored: np.float64(stored)
    return lambda stored: wide(stored)


def same(one, two):
    """Whether two numbers of that type are the same one, the sign of zero included; none is NaN."""


@overload(same, inline="always")
def _same_as(one, two):
    if one is types.float64:
        return lambda one, two: (one == two) & (_double_bits(one) == _double_bits(two))
    return lambda one, two: (one == two) & (_float_bits(one) == _float_bits(two))


def unit(value, like):
    """The unit in the last place of the type of `like` at a number of the arithmetic type."""


@overload(unit, inline="always")
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
    """An intrinsic for memory of CHUNK numbers on the stack, of a type that `kind_of` makes of that of `like`.

    The compiler knows that nothing else points there. Between arrays it would have to check whether they overlap, and
    gives up on vector instructions where there are many.
    """

    @intrinsic
    def local(typingctx, like):
        kind = kind_of(like)

        def code(context, builder, signature, arguments):
            memory = cgutils.alloca_once(builder, ir.ArrayType(context.get_data_type(kind), CHUNK))
            memory.align = 64
            return builder.bitcast(memory, context.get_data_type(kind).as_pointer())

        return types.CPointer(kind)(like), code

    return local


local_stored = _local(lambda stored: stored)
local_wide = _local(lambda stored: types.float64 if stored is types.float64 else types.float32)
local_widest = _local(lambda stored: types.float64 if stored in (types.float32, types.float64) else types.float32)

_inlined = njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)


@_inlined
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


@_inlined
def gather(numbers, positions, step, start, count, gathered):
    """Take `count` numbers at positions[start:]; `step`: the distance of the positions, 0 where it is not the same.

    Slices first: an index that might be negative, and count from the end, is no consecutive one for the compiler, and
    it uses vector instructions for distances that it knows.
    """
    if step == 1:
        chunk = numbers[positions[start] : positions[start] + count]
        for i in range(count):
            gathered[i] = chunk[i]
    elif step == 2:
        chunk = numbers[positions[start] : positions[start] + 2 * count - 1]
        for i in range(count):
            gathered[i] = chunk[2 * i]
    else:
        chosen = positions[start : start + count]
        for i in range(count):
            gathered[i] = numbers[chosen[i]]


@_inlined
def scatter(stored, grown, positions, step, start, count):
    """Put `count` numbers at positions[start:]; `step`: as in `gather`."""
    if step == 1:
        chunk = grown[positions[start] : positions[start] + count]
        for i in range(count):
            chunk[i] = stored[i]
    elif step == 2:
        chunk = grown[positions[start] : positions[start] + 2 * count - 1]
        for i in range(count):
            chunk[2 * i] = stored[i]
    else:
        chosen = positions[start : start + count]
        for i in range(count):
            grown[chosen[i]] = stored[i]


@_inlined
def sum_of_draws(draws, positions, steps, start, count, drawn, total):
    """Sums (count,) of the draws of all copies."""
    for i in range(count):
        total[i] = 0
    for k in range(positions.shape[0]):
        gather(draws, positions[k], steps[k], start, count, drawn)
        for i in range(count):
            total[i] += np.int32(drawn[i])
