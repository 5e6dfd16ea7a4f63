"""How far the copies in one matrix have diverged, and its spectrum: pure functions on tensors.

Take the copies of one unit: columns of a matrix that read the same source unit, or rows that write it.

* **Symmetry** (arXiv 2409.12903, section 3.2): cut every row of W into its c copies w_1 ... w_c; the cosine between
  two of them, averaged over pairs and rows. 1: the copies are equal; 0: unrelated, as in a random matrix. The
  transposed matrix gives the symmetry between copies of output units. With unit vectors u_b = w_b / |w_b| the mean over
  pairs is (|u_1 + ... + u_c|^2 - c) / (c^2 - c).
* **Divergence**: W = mean over copies + rest, which are orthogonal, so |W|^2 is the sum of both. Where copies
  are equal the rest is zero; in a random matrix it has 1 - d/D of the squares (d source units, D new ones). Hence

      divergence = |rest|^2 / |W|^2 / (1 - d/D)        0: copies are equal; 1: as unrelated copies; above: opposed.

  For 2 copies of equal length it is 1 - symmetry. Of activations, it is the share of the added width in use
  (activations.py). A model grown with noise at a power ratio q starts at symmetry (1 - q) / (1 + q) between input
  copies of a 2-fold symmetric split and 1 / (1 + q) between output copies: 0.82 and 0.91 at 10 dB.
* **Spectrum** (section 3.3): singular values over the largest; *effective rank* exp(-sum p log p), p = s / sum s (Roy
  and Vetterli 2007); *stable rank* |W|_F^2 / s_1^2. Without noise, a grown matrix has the source's
  spectrum, scaled, then zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperclone.expansion.copy_map import CopyMap

_PIECE = 1 << 22  # weights processed at once


@dataclass(frozen=True)
class CopyComparison:
    """The copies along one dimension: symmetry, divergence, and whether they are equal to the last bit."""

    symmetry: float
    divergence: float
    equal: bool


@dataclass(frozen=True)
class Spectrum:
    """Singular values over the largest (up to 200, evenly spread), their number (`size`), and two ranks."""

    values: tuple[float, ...]
    size: int
    effective_rank: float
    stable_rank: float


def compare_copies(matrix: Tensor, columns: CopyMap) -> CopyComparison | None:
    """Compare the copies of the columns of a matrix (R, D); None if there are no copies, or all of them are zero."""
    if all(c < 2 for c, _, _ in columns.groups):
        return None
    equal, cosines, rows = True, 0.0, 0
    rest = whole = 0.0
    units = sum(len(u) for c, u, _ in columns.groups if c > 1)
    for piece in _pieces(matrix):
        of_row = torch.zeros(len(piece), dtype=torch.float64)
        seen = torch.zeros(len(piece), dtype=torch.bool)
        for c, units_of, positions in columns.spans:
            copies = torch.stack([piece[:, columns_of] for columns_of in positions])  # (c, R, J)
            if c < 2:
                whole += float(copies.square().sum(dtype=torch.float64))
                continue
            equal = equal and bool((copies == copies[0]).all())
            rest += float((copies - copies.mean(0)).square().sum(dtype=torch.float64))
            whole += float(copies.square().sum(dtype=torch.float64))
            length = copies.norm(dim=2, keepdim=True)
            total = (copies / length.clamp_min(torch.finfo(copies.dtype).tiny)).sum(0).square().sum(1)
            nonzero = length.squeeze(2).gt(0)  # a copy that is zero has no direction: its cosine is 0
            weight = (piece[:, units_of].shape[1] if isinstance(units_of, slice) else len(units_of)) / units
            of_row += weight * (total.double() - nonzero.sum(0)) / (c * c - c)
            seen |= nonzero.any(0)
        cosines += float(of_row[seen].sum())
        rows += int(seen.sum())
    if not rows or not whole:
        return None
    copied = int((columns.count > 0).sum())
    return CopyComparison(cosines / rows, rest / whole / (1 - columns.old / copied), equal)


def equal_copies(matrix: Tensor, columns: CopyMap) -> bool:
    """Whether all copies of every column of (R, D) are equal to the last bit."""
    return all(
        bool((matrix[:, copy] == matrix[:, positions[0]]).all())
        for _, _, positions in columns.spans
        for copy in positions[1:]
    )


def spectrum(matrix: Tensor, *, keep: int = 200) -> Spectrum | None:
    """The spectrum of a matrix (R, D); None if it is zero or not finite.

    Computed from the eigenvalues of its Gram matrix in fp64, which takes the memory of the shorter side squared. Ratios
    below 1e-7 are lost to rounding, because they are squared on the way.
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
    """The mean of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _pieces(matrix: Tensor, *, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Blocks of rows, in fp32 at least: sums in half precision would round more than copies differ."""
    if matrix.dtype == torch.float64:
        dtype = torch.float64
    step = max(1, _PIECE // matrix.shape[1])
    for start in range(0, len(matrix), step):
        yield matrix[start : start + step].to(dtype)
