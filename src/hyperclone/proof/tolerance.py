"""The proof's tolerance: how much the logits of a grown model may differ from its source's by rounding alone.

The tolerance is derived, not chosen. On the same inputs the source itself is run in the computing type and in the next
wider one. Their difference, the source error E, is the rounding error of this model. Rounding errors of a dot product
grow with the size of its terms and, being independent, with the root of their number. A grown layer has n times as many
terms, and the absolute values of the shares of a weight sum to at most a = sqrt(n B (1 + q)) times the weight in root
mean square (q the noise-to-signal power ratio; B = 1/n for symmetric, 1 for diagonal). So the grown model may differ
from the wide source by 4 a sqrt(n) E; the 4 covers the spread between two samples of rounding errors. Gaussian noise,
and factors that the stored type cannot hold, move weights by a rounding error of the stored type as well, whose effect
is the source error in that type.

New experts (upcycling.py) round a block's output y more often than the dense block: the weights p of a token's k
experts, their products with y, and k - 1 sums. Relative to one rounding of y these have mean squares of at most
sum p^2 <= 1, the same, and k - 1 (no partial sum is larger than y): k + 1 together. One rounding of y is part of E, so
E^2 grows by at most k + 1 times itself, and the tolerance by a factor sqrt(k + 2). A single expert has weight 1, and
adds nothing.

The structural proof has no tolerance for exact splits: weights collapse to the source's bit for bit. For Gaussian noise
its bound is that of expansion/expand.py (`rounding_bound`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hyperclone.planning.recipe import Expansion, Noise

if TYPE_CHECKING:
    from hyperclone.planning.plan import Plan

_SPREAD = 4.0
_CEILING = 0.5  # whatever rounding may explain, this is another function
_FLOOR = 1.0  # units in the last place that the source error is at least: a small model may round to itself by luck


def source_error(measured: float, dtype: torch.dtype) -> float:
    """E: the relative distance of the source's logits in `dtype` from those in the next wider type; at least one ulp.

    Args:
        measured: that distance, as measured.
        dtype: the computing type.
    """
    return max(measured, _FLOOR * torch.finfo(dtype).eps)


def largest_difference(plan: Plan, error: float) -> float:
    """The largest relative distance of logits that rounding explains.

    Args:
        plan: of the grown model.
        error: the source error; where weights were rounded to the stored type, plus the source error in that type.
    """
    return min(factor(plan) * error, _CEILING)


def factor(plan: Plan) -> float:
    """4 a sqrt(n), times sqrt(k + 2) for several experts of a token, as derived in the module's docstring."""
    n = max(tensor.inputs for tensor in plan.tensors)
    q = 0.0 if plan.growth.recipe.noise is Noise.NONE else 10 ** (-plan.growth.snr_db / 10)
    spread = n if plan.growth.recipe.expansion is Expansion.DIAGONAL else 1.0
    k = plan.growth.top_k if plan.growth.experts is not None else 1
    return _SPREAD * math.sqrt(spread * (1 + q)) * math.sqrt(n) * (math.sqrt(k + 2) if k > 1 else 1.0)
