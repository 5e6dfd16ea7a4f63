"""Larger heads: what queries are multiplied by when head_dim grows (arXiv 2409.12903, section 2).

Grow head_dim from d to D, so that unit j of queries, keys and values has c_j copies. A score was the sum over j of
q_j k_j, divided by sqrt(d); it is now the sum of c_j q_j k_j, divided by sqrt(D). Queries times

    sqrt(D / d) / c_j        (sqrt(d / D) where all units have D / d copies)

leave every score as it was, for any D. The factor stands on queries alone, so that keys keep what is cached of them.
Values repeat, and the output projection reads their copies, as on any other axis. It needs positions that do not act on
single channels of a head: learned ones, or ALiBi; rotary positions turn them at frequencies that depend on head_dim.
"""

from __future__ import annotations

import math

AXIS = "head_dim"


def query_factor(count: int, old: int, new: int) -> float:
    """What a query unit with `count` copies is multiplied by."""
    return math.sqrt(new / old) / count


def query_factors(old: int, new: int) -> tuple[float, ...]:
    """Every factor that occurs: one, or two where some units have one copy more than others."""
    return tuple(
        query_factor(count, old, new) for count in ([new // old] if new % old == 0 else [new // old, new // old + 1])
    )
