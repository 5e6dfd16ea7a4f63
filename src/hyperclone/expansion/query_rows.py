"""The factor of every row of queries when head_dim grows (planning/head_scaling.py derives it)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hyperclone.architectures.layout import Dim, Query
from hyperclone.planning.head_scaling import AXIS, query_factor


def row_factors(dim: Dim, sizes: Mapping[str, tuple[int, int]], *, queries: bool = False) -> Tensor:
    """(d_out,) fp64: the factor of every old row of a stored dimension, 1 outside of queries.

    Args:
        dim: the dimension that the tensor writes.
        sizes: (old, new) of every axis.
        queries: it is inside `query(...)`.
    """
    old, new = sizes[AXIS]
    blocks = []
    for block in dim:
        factors = torch.ones(1, dtype=torch.float64)
        for factor in block:
            if isinstance(factor, Query):
                block_factors = row_factors(factor.dim, sizes, queries=True)
            elif isinstance(factor, tuple):
                block_factors = row_factors(factor, sizes, queries=queries)
            elif queries and factor == AXIS:
                counts = [(new - unit + old - 1) // old for unit in range(old)]
                block_factors = torch.tensor([query_factor(count, old, new) for count in counts], dtype=torch.float64)
            else:
                block_factors = torch.ones(factor if isinstance(factor, int) else sizes[factor][0], dtype=torch.float64)
            factors = torch.kron(factors, block_factors)  # C order, as in copy_map.product
        blocks.append(factors)
    return torch.cat(blocks)
