"""One step of rotated AdamW in one pass over memory, compiled by numba; rotated_step.py is the reference.

The copies of a few units at a time, along rows and columns, are turned, stepped and turned back in the first cache, so
that weights, gradients and moments are read once and written once: 28 bytes for each weight in fp32, as by AdamW.

Memory is addressed by pointers and unsigned numbers: views of arrays are counted, which costs more than the arithmetic
of a chunk, and an index that might be negative keeps a loop from becoming vector instructions.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

CHUNK = 256  # units worked on at once
_LINE = 16  # numbers that are asked for ahead by one address: a cache line of fp32
_U = np.uint64

_compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_inlined = njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)


@intrinsic
def _pointer(typingctx, array):
    """The address of an array's first number."""

    def code(context, builder, signature, arguments):
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), code


@intrinsic
def _ask_for(typingctx, pointer, index):
    """Have the processor fetch a number that will be needed soon."""

    def code(context, builder, signature, arguments):
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, word, word, word])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(fetch, [address, word(0), word(3), word(1)])  # to read; to be kept; data
        return context.get_dummy_value()

    return types.void(pointer, index), code


@_inlined
def _numbers(array):
    """An array's numbers in one row, not counted."""
    return carray(_pointer(array), array.size)


@_inlined
def _read(numbers, base, positions, step, start, size, copies, at):
    """copies[at:] = numbers[base + positions[start:]], of positions at equal distances `step`, or 0."""
    if step == 1:
        first = base + _U(positions[start])
        for i in range(size):
            copies[at + _U(i)] = numbers[first + _U(i)]
    elif step == 2:
        first = base + _U(positions[start])
        for i in range(size):
            copies[at + _U(i)] = numbers[first + _U(2) * _U(i)]
    else:
        for i in range(size):
            copies[at + _U(i)] = numbers[base + _U(positions[start + _U(i)])]


@_inlined
def _mix(copies, first, copy, weight, size):
    """One step of Helmert's turn (rotation.py), without its factors: (x, y) becomes (x + y, x - weight y)."""
    for i in range(size):
        one, other = copies[first + _U(i)], copies[copy + _U(i)]
        copies[first + _U(i)] = one + other
        copies[copy + _U(i)] = one - weight * other


@_inlined
def _turn(copies, first, apart, count, size):
    """The coordinates of the copies at first, first + apart, ..."""
    for b in range(1, count):
        _mix(copies, first, first + _U(b) * apart, type(copies[0])(b), size)


@_inlined
def _turn_back(copies, first, apart, count, size):
    """The inverse, of coordinates with both of its factors: the same steps the other way around."""
    for b in range(1, count):
        _mix(copies, first, first + _U(count - b) * apart, type(copies[0])(count - b), size)


@_inlined
def _moment(first, second, slope, at, shares):
    """Adam's moments after one gradient; the step's direction."""
    new_first, new_second, kept_second, eps = shares
    average, square = first[at], second[at]
    average += new_first * (slope - average)
    square = kept_second * square + new_second * (slope * slope)
    first[at], second[at] = average, square
    return average / (np.sqrt(square) + eps)


@_inlined
def _step(copies, here, first, second, where, factor, length, numbers):
    """copies[here:] = the steps of these gradients."""
    base, positions, distance, start, size = where
    shares = numbers[_U(0)], numbers[_U(1)], numbers[_U(2)], numbers[_U(3)]  # values: a store may change no others
    if distance == 1:
        at = base + _U(positions[start])
        for i in range(size):
            slope = copies[here + _U(i)] * factor
            copies[here + _U(i)] = length * _moment(first, second, slope, at + _U(i), shares)
    elif distance == 2:
        at = base + _U(positions[start])
        for i in range(size):
            slope = copies[here + _U(i)] * factor
            copies[here + _U(i)] = length * _moment(first, second, slope, at + _U(2) * _U(i), shares)
    else:
        for i in range(size):
            slope = copies[here + _U(i)] * factor
            at = base + _U(positions[start + _U(i)])
            copies[here + _U(i)] = length * _moment(first, second, slope, at, shares)


@_inlined
def _move(weights, base, positions, distance, start, size, kept, copies, here):
    """Weights after decay and step."""
    if distance == 1:
        at = base + _U(positions[start])
        for i in range(size):
            weights[at + _U(i)] = kept * weights[at + _U(i)] - copies[here + _U(i)]
    elif distance == 2:
        at = base + _U(positions[start])
        for i in range(size):
            weights[at + _U(2) * _U(i)] = kept * weights[at + _U(2) * _U(i)] - copies[here + _U(i)]
    else:
        for i in range(size):
            at = base + _U(positions[start + _U(i)])
            weights[at] = kept * weights[at] - copies[here + _U(i)]


@_compiled
def adam_rows(weight, gradient, first, second, rows, columns, steps, span, numbers):
    """One step of all weights in the rows and columns of units that have so many copies.

    Args:
        weight, first, second: (R, C), changed in place; the moments are in the coordinates of copies.
        gradient: (R, C).
        rows, columns: positions of the copies: (r, J) and (c, K).
        steps: (c,) distances in each row of `columns`; 0 where they are not the same.
        span: first of the J units, and the one after the last.
        numbers: (7,) of the weights' type: shares of the new gradient in the moments, and the one of the old second
            moment; eps; what decay leaves of a weight; step sizes of what copies have in common and of differences.
    """
    row_copies, column_copies, units = rows.shape[0], columns.shape[0], columns.shape[1]
    number, width, apart = type(weight[0, 0]), _U(weight.shape[1]), _U(CHUNK)
    weights, slopes, averages, squares = _numbers(weight), _numbers(gradient), _numbers(first), _numbers(second)
    row_at, positions = _numbers(rows), _numbers(columns)
    buffer, own = np.empty(row_copies * column_copies * CHUNK, weight.dtype), numbers.copy()
    root = number(np.sqrt(row_copies * column_copies))
    own[3] *= root  # eps
    copies, scalars = _numbers(buffer), _numbers(own)
    parts = (units + CHUNK - 1) // CHUNK
    most = (units + parts - 1) // parts
    for unit in range(span[0], span[1]):
        for start in range(0, units, most):
            size = min(most, units - start)
            for a in range(row_copies):
                base = _U(row_at[_U(a * rows.shape[1] + unit)]) * width
                for b in range(column_copies):
                    here, from_ = _U(a * column_copies + b) * apart, _U(b * units + start)
                    _read(slopes, base, positions, steps[b], from_, size, copies, here)
            for b in range(column_copies):
                _turn(copies, _U(b) * apart, _U(column_copies) * apart, row_copies, size)
            for a in range(row_copies):
                _turn(copies, _U(a * column_copies) * apart, apart, column_copies, size)
            for a in range(row_copies):
                base = _U(row_at[_U(a * rows.shape[1] + unit)]) * width
                for b in range(column_copies):
                    here, from_ = _U(a * column_copies + b) * apart, _U(b * units + start)
                    norm = (a * (a + 1) if a else row_copies) * (b * (b + 1) if b else column_copies)
                    factor = number(1 / np.sqrt(norm))
                    length = scalars[_U(6 if a or b else 5)] * root * factor
                    where = base, positions, steps[b], from_, size
                    _step(copies, here, averages, squares, where, factor, length, scalars)
            for a in range(row_copies):
                _turn_back(copies, _U(a * column_copies) * apart, apart, column_copies, size)
            for b in range(column_copies):
                _turn_back(copies, _U(b) * apart, _U(column_copies) * apart, row_copies, size)
            for a in range(row_copies):
                base = _U(row_at[_U(a * rows.shape[1] + unit)]) * width
                for b in range(column_copies):
                    here, from_ = _U(a * column_copies + b) * apart, _U(b * units + start)
                    _move(weights, base, positions, steps[b], from_, size, scalars[_U(4)], copies, here)
