"""One step of rotated AdamW in one pass over memory, compiled by numba; rotated_step.py is the reference.

A unit of rows and a unit of columns have r times c copies. Their gradients are loaded, turned, made a step of, turned
back and taken from the weights in registers, so that weights, gradients and moments are read once and written once: 28
bytes for each weight in fp32, as by AdamW. For each r and c the instructions are written out one by one (`_emit`), in a
loop over units of columns, which the compiler makes vector instructions of. It could not without being told that the
copies do not overlap in memory, and Python has no word for that.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_U = np.uint64  # numbers that might be negative count from the end, which costs a test for each access

_compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")


@intrinsic
def _pointer(typingctx, array):
    """The address of an array's first number."""

    def code(context, builder, signature, arguments):
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), code


def _stepping(*, side_by_side):
    """An intrinsic that steps `size` units of columns with the rows of one unit.

    Its arguments: size; pointers to weights, gradients and both moments; numbers of `adam_rows`; as tuples, so that
    their lengths are known when it is compiled: where the row of each copy begins; where in a row each copy of the
    first unit stands.
    """

    @intrinsic
    def step_units(typingctx, size, weights, gradients, first, second, numbers, rows, columns):
        def code(context, builder, signature, arguments):
            counts, number = (len(rows), len(columns)), context.get_value_type(weights.dtype)
            streams = len(rows) if side_by_side else len(rows) * len(columns)
            name = f"adam_{counts[0]}_{counts[1]}_{side_by_side}_{weights.dtype}"
            function = builder.module.globals.get(name)
            if function is None:
                kinds = [_WORD] + [number.as_pointer()] * (4 * streams) + [number] * 7
                function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
                function.linkage = "internal"
                function.attributes.add("noinline")
                for pointer in function.args[1 : 1 + 4 * streams]:
                    pointer.add_attribute("noalias")
                _emit(function, counts, side_by_side=side_by_side)
            row_at, column_at = ([builder.extract_value(arguments[which], i) for i in range(count)]
                                 for which, count in zip((6, 7), counts, strict=True))  # fmt: skip
            offsets = [builder.add(row, column) for row in row_at for column in column_at[: streams // counts[0]]]
            pointers = [builder.gep(arguments[which], [offset]) for which in (1, 2, 3, 4) for offset in offsets]
            values = [builder.extract_value(arguments[5], i) for i in range(7)]
            builder.call(function, [arguments[0], *pointers, *values])
            return context.get_dummy_value()

        given = (size, weights, gradients, first, second, numbers, rows, columns)
        return types.void(*given), code

    return step_units


def _emit(function, counts, *, side_by_side):
    """The body of the loop over units.

    Args:
        function: of the number of units; pointers to the weights of each copy at the first unit, to their gradients
            and to both moments; and the numbers of `adam_rows`. Of copies side by side there is one pointer for each
            row.
        counts: (r, c).
        side_by_side: the c copies of a unit of columns are neighbors, and the next unit stands behind them.
    """
    r, c = counts
    copies, streams = range(r * c), r if side_by_side else r * c
    size, pointers, numbers = function.args[0], function.args[1 : 1 + 4 * streams], function.args[1 + 4 * streams :]
    weights, gradients, first, second = (pointers[i * streams : (i + 1) * streams] for i in range(4))
    new_first, new_second, kept_second, eps, kept, common_size, difference_size = numbers
    number = eps.type
    start, loop, end = (function.append_basic_block(name) for name in ("start", "loop", "end"))
    build = ir.IRBuilder(start)
    eps = build.fmul(eps, number(math.sqrt(r * c)))
    build.cbranch(build.icmp_signed(">", size, _WORD(0)), loop, end)
    build = ir.IRBuilder(loop)
    unit = build.phi(_WORD)
    unit.add_incoming(_WORD(0), start)
    at = build.mul(unit, _WORD(c)) if side_by_side else unit
    root = function.module.declare_intrinsic("llvm.sqrt", [number])

    def address(stream, copy):
        if side_by_side:
            return build.gep(stream[copy // c], [build.add(at, _WORD(copy % c), flags=["nsw", "nuw"])], inbounds=True)
        return build.gep(stream[copy], [at], inbounds=True)

    def mix(one, other, weight):
        """Helmert's turn (rotation.py) consists of these steps, but for its factors; backward it turns back."""
        x, y = values[one], values[other]
        values[one] = build.fadd(x, y)
        values[other] = build.fsub(x, y if weight == 1 else build.fmul(number(float(weight)), y))

    along_rows = [(column, a * c + column, a) for column in range(c) for a in range(1, r)]
    along_columns = [(row * c, row * c + b, b) for row in range(r) for b in range(1, c)]
    values = [build.load(address(gradients, copy)) for copy in copies]
    for step in (*along_rows, *along_columns):
        mix(*step)
    for copy in copies:
        a, b = divmod(copy, c)
        factor = 1 / math.sqrt((a * (a + 1) if a else r) * (b * (b + 1) if b else c))
        slope = build.fmul(values[copy], number(factor))
        average = build.load(address(first, copy))
        average = build.fadd(average, build.fmul(new_first, build.fsub(slope, average)))
        build.store(average, address(first, copy))
        square = build.fmul(kept_second, build.load(address(second, copy)))
        square = build.fadd(square, build.fmul(new_second, build.fmul(slope, slope)))
        build.store(square, address(second, copy))
        length = build.fmul(difference_size if copy else common_size, number(factor * math.sqrt(r * c)))
        values[copy] = build.fdiv(build.fmul(length, average), build.fadd(build.call(root, [square]), eps))
    for step in (*reversed(along_columns), *reversed(along_rows)):
        mix(*step)
    for copy in copies:
        weight = build.load(address(weights, copy))
        build.store(build.fsub(build.fmul(kept, weight), values[copy]), address(weights, copy))
    following = build.add(unit, _WORD(1), flags=["nsw", "nuw"])
    unit.add_incoming(following, loop)
    build.cbranch(build.icmp_signed("<", following, size), loop, end)
    ir.IRBuilder(end).ret_void()


_step_apart, _step_side_by_side = _stepping(side_by_side=False), _stepping(side_by_side=True)


@intrinsic
def _column(typingctx, pointer, length, at, like):
    """(p[at], p[length + at], ...), as many as `like` has."""

    def code(context, builder, signature, arguments):
        place, found = arguments[2], []
        for _ in range(len(like)):
            found.append(builder.load(builder.gep(arguments[0], [place])))
            place = builder.add(place, arguments[1])
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(types.int64, len(like))(pointer, length, at, like), code


@intrinsic
def _times(typingctx, numbers, factor):
    """A tuple of whole numbers times one."""

    def code(context, builder, signature, arguments):
        each = [builder.extract_value(arguments[0], i) for i in range(len(numbers))]
        return context.make_tuple(builder, signature.return_type, [builder.mul(one, arguments[1]) for one in each])

    return numbers(numbers, factor), code


@_compiled
def adam_rows(weight, gradient, first, second, rows, columns, side_by_side, copies, span, numbers):
    """One step of all weights in the rows and columns of units that have so many copies.

    Args:
        weight, first, second: (R, C), changed in place; the moments are in the coordinates of copies.
        gradient: (R, C).
        rows: (r, J) positions of the copies of J units.
        columns: starts (c, K) and sizes (K,) of runs of units (rotation.Runs).
        side_by_side: True if copies are, in the columns; else None, for which numba leaves that branch out.
        copies: two tuples of whole numbers that are as long as r and c.
        span: first of the J units of rows, and the one after the last.
        numbers: seven numbers of the weights' type: shares of the new gradient in the moments, and the one of the old
            second moment; eps; what decay leaves of a weight; step sizes of what copies have in common and of
            differences.
    """
    (starts, sizes), (row_copies, column_copies) = columns, copies
    weights, gradients, averages, squares = _pointer(weight), _pointer(gradient), _pointer(first), _pointer(second)
    row_at, column_at, lengths = _pointer(rows), _pointer(starts), carray(_pointer(sizes), sizes.size)
    for unit in range(span[0], span[1]):
        own = _times(_column(row_at, rows.shape[1], unit, row_copies), weight.shape[1])
        for run in range(sizes.size):
            standing, size = _column(column_at, starts.shape[1], run, column_copies), lengths[_U(run)]
            if side_by_side is None:
                _step_apart(size, weights, gradients, averages, squares, numbers, own, standing)
            else:
                _step_side_by_side(size, weights, gradients, averages, squares, numbers, own, standing)
