"""How far the copies in one matrix have moved apart, and what spectrum it has: pure functions on tensors.

Take the copies of one unit: columns of a matrix that read the same old unit, or rows that write it.

* **Symmetry** (arXiv 2409.12903, section 3.2): cut every row of W into its c copies w_1 ... w_c; the cosine between
  two of them, averaged over pairs and rows. 1: the copies are equal; 0: unrelated, as in a random matrix. The same of
  the transposed matrix tells the copies of output units apart. With unit vectors u_b = w_b / |w_b| the mean over
  pairs is (|u_1 + ... + u_c|^2 - c) / (c^2 - c).
* **Apart**: W = mean over copies + rest, which are orthogonal, so |W|^2 is the sum of both. A model whose copies agree
  is all mean; of a random matrix the rest has 1 - d/D of the squares (d old units, D new ones). Hence

      apart = |rest|^2 / |W|^2 / (1 - d/D)        0: copies equal; 1: as unrelated copies; more: they oppose each other.

  For 2 copies of equal length it is 1 - symmetry. Of activations the same number is the share of the added width in use
  (anatomy_activations.py). A clone with noise at a power ratio q starts at symmetry (1 - q) / (1 + q) between input
  copies of a 2-fold symmetric split and 1 / (1 + q) between output copies: 0.82 and 0.91 at 10 dB.
* **Spectrum** (section 3.3): singular values over the largest; *effective rank* exp(-sum p log p), p = s / sum s (Roy
  and Vetterli 2007); *stable rank* |W|_F^2 / s_1^2. A noise-free clone has its source's spectrum, scaled, then zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperclone.expansion.copy_map import CopyMap

_PIECE = 1 << 22  # weights worked on at once


@dataclass(frozen=True)
class CopyComparison:
    """The copies along one dimension: symmetry, apart (see the module), and whether they are equal to the last bit."""

    symmetry: float
    apart: float
    equal: bool


@dataclass(frozen=True)
class Spectrum:
    """Singular values over the largest (some 200 of them, evenly spread), their number, and two ranks."""

    values: tuple[float, ...]
    size: int
    effective_rank: float
    stable_rank: float


def compare_copies(matrix: Tensor, columns: CopyMap) -> CopyComparison | None:
    """The copies of the columns of a matrix (R, D); None where nothing has copies, or where all copies are zero."""
    if all(c < 2 for c, _, _ in columns.groups):
        return None
    equal, cosines, rows = True, 0.0, 0
    rest = whole = 0.0
    units = sum(len(u) for c, u, _ in columns.groups if c > 1)
    for piece in _pieces(matrix):
        of_row = torch.zeros(len(piece), dtype=torch.float64)
        seen = torch.zeros(len(piece), dtype=torch.bool)
        for c, of, places in columns.spans:
            copies = torch.stack([piece[:, place] for place in places])  # (c, R, J)
            if c < 2:
                whole += float(copies.square().sum(dtype=torch.float64))
                continue
            equal = equal and bool((copies == copies[0]).all())
            rest += float((copies - copies.mean(0)).square().sum(dtype=torch.float64))
            whole += float(copies.square().sum(dtype=torch.float64))
            length = copies.norm(dim=2, keepdim=True)
            total = (copies / length.clamp_min(torch.finfo(copies.dtype).tiny)).sum(0).square().sum(1)
            nonzero = length.squeeze(2).gt(0)  # a copy that is all zero has no direction: its cosine is 0
            weight = (piece[:, of].shape[1] if isinstance(of, slice) else len(of)) / units
            of_row += weight * (total.double() - nonzero.sum(0)) / (c * c - c)
            seen |= nonzero.any(0)
        cosines += float(of_row[seen].sum())
        rows += int(seen.sum())
    if not rows or not whole:
        return None
    copied = int((columns.count > 0).sum())
    return CopyComparison(cosines / rows, rest / whole / (1 - columns.old / copied), equal)


def equal_copies(matrix: Tensor, columns: CopyMap) -> bool:
    """Every copy of every column of (R, D) is the same to the last bit."""
    return all(
        bool((matrix[:, place] == matrix[:, places[0]]).all()) for _, _, places in columns.spans for place in places[1:]
    )


def spectrum(matrix: Tensor, *, keep: int = 200) -> Spectrum | None:
    """Of a matrix (R, D), by the eigenvalues of its Gram matrix in fp64; None for zero, or what is not finite.

    Ratios below 1e-7 drown in rounding (they are squared on the way); memory is the shorter side squared.
    """
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for piece in _pieces(matrix, dtype=torch.float64):
        gram.addmm_(piece.T, piece)
    if not bool(gram.isfinite().all()) or not bool(gram.any()):
        return None
    values = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()
    share = values / values.sum()
    entropy = -float(torch.special.xlogy(share, share).sum())
    relative = values / values[0]
    chosen = torch.linspace(0, len(values) - 1, min(keep, len(values))).round().long()
    stable = float(relative.square().sum())
    return Spectrum(tuple(relative[chosen].tolist()), len(values), math.exp(entropy), stable)


def mean(values: Sequence[float | None]) -> float | None:
    """Of the values that there are; None if there are none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _pieces(matrix: Tensor, *, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Runs of rows, in fp32 at least: half-precision sums would round more than copies differ."""
    if matrix.dtype == torch.float64:
        dtype = torch.float64
    step = max(1, _PIECE // matrix.shape[1])
    for start in range(0, len(matrix), step):
        yield matrix[start : start + step].to(dtype)
