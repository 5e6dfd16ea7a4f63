"""The arithmetic of expand.py in one pass over memory, compiled by numba: the same bytes, several times as fast.

expand.py is the reference: it says what is computed, and runs where numba is missing. Here each row is worked through
in chunks that stay in the first cache; draws are made where they are used. Rounding is that of the reference to the
bit, since every operation is the same IEEE operation in the same order: no fused multiply-add, no reordering.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from hyperclone.expansion.kernel_parts import (
    CHUNK,
    HALVES,
    draw_row,
    gather,
    local_stored,
    local_wide,
    local_widest,
    narrow,
    nearest,
    same,
    scatter,
    sum_of_draws,
    unit,
    wide,
    widest,
)

__all__ = ["HALVES", "even_rows", "repeats_agree", "share_rows", "split_rows", "sums_agree"]

_compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")


@_compiled
def split_rows(weight, grown, where, stream, scale, limits, unclipped):
    """Fill the columns of units with c copies: an exact split with noise (expand._split_columns, Noise.SPLIT).

    Args:
        weight: (S, d) stored numbers.
        grown: (R, D) the output.
        where: source (R,), the row of `weight` that each new row copies; units (J,), columns of the weight; positions
            (c, J), columns of the output; steps (c + 1,), the distances in each row of positions, and last of the
            units; 0 where they are not the same.
        stream: numbers (R,), which output copy each row is; own_first, whether the row's own copy holds the weight
            (diagonal); keys (2,), of the Philox stream; counter, steps of the stream before the first row.
        scale: what the noise is multiplied by, fp32.
        limits: (5,) of the arithmetic type: share of the first copy and of the others without noise, 1.5 x 2^23,
            2^p - 2, the largest number.
        unclipped: weights are bf16 or fp16, and parts need no clipping.
    """
    source, units, positions, steps = where
    numbers, own_first, keys, counter = stream
    copies, blocks, like = positions.shape[0], (grown.shape[1] + 15) // 16, weight[0, 0]
    words, count_32 = np.empty(4 * blocks, np.uint64), np.float32(copies)
    draws = words.view(np.int16)
    anchor_units, reach_units, largest = limits[2], limits[3], limits[4]
    stored, drawn = carray(local_stored(like), CHUNK), carray(local_stored(np.int16(0)), CHUNK)
    total = carray(local_stored(np.int32(0)), CHUNK)
    whole, left = carray(local_wide(like), CHUNK), carray(local_wide(like), CHUNK)
    for row in range(grown.shape[0]):
        draw_row(keys[0], keys[1], counter + np.uint64(row * blocks), words)
        first = numbers[row] % copies if own_first else 0
        for start in range(0, units.size, CHUNK):
            count = min(CHUNK, units.size - start)
            sum_of_draws(draws, positions, steps, start, count, drawn, total)
            gather(weight[source[row]], units, steps[copies], start, count, stored)
            for i in range(count):
                whole[i] = wide(stored[i])
                left[i] = whole[i]
            for k in range(copies - 1):
                copy = (first + k) % copies
                base = limits[0] if k == 0 else limits[1]
                gather(draws, positions[copy], steps[copy], start, count, drawn)
                if unclipped:  # exact_split._unclipped: adding and taking away an anchor rounds to whole units
                    for i in range(count):
                        share = (np.float32(drawn[i]) * count_32 - np.float32(total[i])) * scale + base
                        anchor = unit(whole[i], like) * anchor_units
                        part = (whole[i] * share + anchor) - anchor
                        left[i] -= part
                        stored[i] = narrow(part if whole[i] != 0 else whole[i], like)
                else:  # exact_split.split_by_shares: what is left is a number of the type
                    for i in range(count):
                        share = (np.float32(drawn[i]) * count_32 - np.float32(total[i])) * scale
                        step = unit(whole[i], like)
                        part = nearest(whole[i] / step * (type(base)(share) + base)) * step
                        low, high = left[i] - step * reach_units, left[i] + step * reach_units
                        part = part if part > low else low  # at ties the bound, whose zero may have another sign
                        part = part if part < high else high
                        part = part if part > -largest else -largest
                        part = part if part < largest else largest
                        kept = narrow(part if whole[i] != 0 else whole[i], like)
                        stored[i] = kept
                        left[i] -= wide(kept)
                scatter(stored, grown[row], positions[copy], steps[copy], start, count)
            for i in range(count):
                stored[i] = narrow(left[i] if whole[i] != 0 else whole[i], like)
            copy = (first + copies - 1) % copies
            scatter(stored, grown[row], positions[copy], steps[copy], start, count)


@_compiled
def share_rows(weight, grown, where, stream, scale, limits, table):
    """Fill the columns of units with c copies: shares with Gaussian noise (Noise.GAUSSIAN).

    Args:
        scale: what the noise is multiplied by, fp64.
        table: (65536,) fp32 normal quantiles (noise.normal_quantiles).
        weight, grown, where, stream, limits: as in `split_rows`.
    """
    source, units, positions, steps = where
    numbers, own_first, keys, counter = stream
    copies, blocks, like = positions.shape[0], (grown.shape[1] + 15) // 16, weight[0, 0]
    words, count_64 = np.empty(4 * blocks, np.uint64), np.float64(copies)
    draws, values = words.view(np.int16), np.empty((copies, CHUNK), np.float32)
    stored, drawn = carray(local_stored(like), CHUNK), carray(local_stored(np.int16(0)), CHUNK)
    total, whole = carray(local_wide(np.float64(0)), CHUNK), carray(local_wide(like), CHUNK)
    for row in range(grown.shape[0]):
        draw_row(keys[0], keys[1], counter + np.uint64(row * blocks), words)
        first = numbers[row] % copies if own_first else 0
        for start in range(0, units.size, CHUNK):
            count = min(CHUNK, units.size - start)
            for k in range(copies):
                copy = (first + k) % copies
                gather(draws, positions[copy], steps[copy], start, count, drawn)
                for i in range(count):
                    values[k, i] = table[np.int32(drawn[i]) + 32768]
                for i in range(count):  # in this order: sums of these are rounded
                    total[i] = np.float64(values[k, i]) + (total[i] if k else 0.0)
            gather(weight[source[row]], units, steps[copies], start, count, stored)
            for i in range(count):
                whole[i] = wide(stored[i])
            for k in range(copies):
                copy = (first + k) % copies
                base = limits[0] if k == 0 else limits[1]
                for i in range(count):
                    noise = (np.float64(values[k, i]) * count_64 - total[i]) * scale
                    stored[i] = narrow(whole[i] * base + type(base)(noise), like)
                scatter(stored, grown[row], positions[copy], steps[copy], start, count)


@_compiled
def even_rows(weight, grown, where, power_of_two, parts):
    """Fill the columns of units with c copies: equal parts (exact_split.split_evenly).

    Args:
        power_of_two: c is one.
        parts: (c,) of the arithmetic type: c, c - 1, .., 1.
        weight, grown, where: as in `split_rows`.
    """
    source, units, positions, steps = where
    copies, like = positions.shape[0], weight[0, 0]
    stored, whole = carray(local_stored(like), CHUNK), carray(local_wide(like), CHUNK)
    left, even = carray(local_wide(like), CHUNK), carray(local_stored(like), CHUNK)
    for row in range(grown.shape[0]):
        for start in range(0, units.size, CHUNK):
            count = min(CHUNK, units.size - start)
            gather(weight[source[row]], units, steps[copies], start, count, stored)
            exact = power_of_two
            for i in range(count):
                whole[i] = wide(stored[i])
                even[i] = narrow(whole[i] / parts[0], like)
                exact &= wide(even[i]) * parts[0] == whole[i]
            if exact:
                for k in range(copies):
                    scatter(even, grown[row], positions[k], steps[k], start, count)
                continue
            for i in range(count):
                left[i] = whole[i] / unit(whole[i], like)
            for k in range(copies):
                for i in range(count):
                    part = nearest(left[i] / parts[k])
                    left[i] -= part
                    same = (whole[i] == 0) | (power_of_two & (wide(even[i]) * parts[0] == whole[i]))
                    stored[i] = even[i] if same else narrow(part * unit(whole[i], like), like)
                scatter(stored, grown[row], positions[k], steps[k], start, count)


@_compiled
def sums_agree(weight, grown, where):
    """Whether the c parts of each weight sum to it, to the bit (bf16, fp16 and fp32).

    Args:
        weight, grown, where: as in `split_rows`.
    """
    source, units, positions, steps = where
    copies, like = positions.shape[0], weight[0, 0]
    stored, total = carray(local_stored(like), CHUNK), carray(local_widest(like), CHUNK)
    for row in range(grown.shape[0]):
        for start in range(0, units.size, CHUNK):
            count = min(CHUNK, units.size - start)
            for k in range(copies):
                gather(grown[row], positions[k], steps[k], start, count, stored)
                if k == 0:
                    for i in range(count):
                        total[i] = widest(stored[i])
                else:
                    for i in range(count):
                        total[i] += widest(stored[i])
            gather(weight[source[row]], units, steps[copies], start, count, stored)
            agree = True
            for i in range(count):
                agree &= same(total[i], widest(stored[i]))
            if not agree:
                return False
    return True


@_compiled
def repeats_agree(weight, grown, where):
    """Whether all c copies of each weight are it, as unsigned bits.

    Args:
        weight, grown, where: as in `split_rows`.
    """
    source, units, positions, steps = where
    copies, like = positions.shape[0], weight[0, 0]
    stored, copied = carray(local_stored(like), CHUNK), carray(local_stored(like), CHUNK)
    for row in range(grown.shape[0]):
        for start in range(0, units.size, CHUNK):
            count = min(CHUNK, units.size - start)
            gather(weight[source[row]], units, steps[copies], start, count, stored)
            agree = True
            for k in range(copies):
                gather(grown[row], positions[k], steps[k], start, count, copied)
                for i in range(count):
                    agree &= copied[i] == stored[i]
            if not agree:
                return False
    return True
