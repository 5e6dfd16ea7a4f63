"""What a study keeps of the anatomy of a run: symmetry, ranks and divergence by layer, and a few spectra."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POINTS = 101  # singular values kept of each matrix, at equal distances in rank
_SHOWN = ("q_proj", "up_proj", "down_proj", "query", "fc", "mlp")  # what a block reads into, and what it writes with


@dataclass(frozen=True, kw_only=True)
class LayerSymmetry:
    """Copies in one layer after some tokens: mean cosine over its matrices that read a grown axis."""

    tokens: int
    layer: int
    matrices: int
    cosine: float


@dataclass(frozen=True, kw_only=True)
class LayerAnatomy:
    """The anatomy of one layer after some tokens: means over its matrices, None where nothing was measured.

    Attributes:
        tokens, layer: where.
        matrices: with a cosine.
        cosine: between copies of the columns that read a grown axis.
        divergence: of the copies (anatomy/weights.py: 0 equal, 1 unrelated).
        effective_rank, source_effective_rank: of the matrices, and of those they were grown from.
    """

    tokens: int
    layer: int
    matrices: int
    cosine: float | None
    divergence: float | None
    effective_rank: float | None
    source_effective_rank: float | None


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of one matrix over the largest, at up to POINTS equal distances in rank."""

    tokens: int
    layer: int
    name: str
    values: Sequence[float]


def layer_means(tokens: int, tensors: Iterable[Mapping[str, Any]]) -> list[LayerAnatomy]:
    """The anatomy of each layer, from what `hyperclone anatomy --json` says of each matrix."""
    layers: dict[int, list[Mapping[str, Any]]] = {}
    for tensor in tensors:
        if tensor["layer"] is not None:
            layers.setdefault(tensor["layer"], []).append(tensor)

    def mean(matrices: Sequence[Mapping[str, Any]], part: str, name: str) -> float | None:
        known = [matrix[part][name] for matrix in matrices if matrix[part] is not None]
        return statistics.mean(known) if known else None

    return [
        LayerAnatomy(
            tokens=tokens, layer=layer, matrices=sum(matrix["read"] is not None for matrix in matrices),
            cosine=mean(matrices, "read", "symmetry"), divergence=mean(matrices, "read", "divergence"),
            effective_rank=mean(matrices, "spectrum", "effective_rank"),
            source_effective_rank=mean(matrices, "source_spectrum", "effective_rank"),
        )
        for layer, matrices in sorted(layers.items())
    ]  # fmt: skip


def layer_symmetry(tokens: int, cosines: Mapping[str, float]) -> list[LayerSymmetry]:
    """Mean cosine of each layer, from cosines by matrix; matrices outside of layers are left out."""
    layers: dict[int, list[float]] = {}
    for name, cosine in cosines.items():
        if (layer := _layer(name)) is not None:
            layers.setdefault(layer, []).append(cosine)
    return [
        LayerSymmetry(tokens=tokens, layer=layer, matrices=len(values), cosine=statistics.mean(values))
        for layer, values in sorted(layers.items())
    ]


def middle_spectra(tokens: int, tensors: Iterable[Mapping[str, Any]]) -> list[Spectrum]:
    """Spectra of two matrices of a middle layer, from what `hyperclone anatomy --json` says of each matrix."""
    known = {one["name"]: one for one in tensors if one["layer"] is not None and one["spectrum"]}
    layers = sorted({one["layer"] for one in known.values()})
    if not layers:
        return []
    names = sorted(name for name, one in known.items() if one["layer"] == layers[len(layers) // 2])
    chosen = [name for kind in _SHOWN for name in names if kind in name][:2] or names[:2]
    return [
        Spectrum(
            tokens=tokens, layer=known[name]["layer"], name=name, values=_thinned(known[name]["spectrum"]["values"])
        )
        for name in chosen
    ]


def _thinned(values: Sequence[float]) -> list[float]:
    last = len(values) - 1
    if last < POINTS:
        return list(values)
    return [values[round(point * last / (POINTS - 1))] for point in range(POINTS)]


def _layer(name: str) -> int | None:
    """The layer in a tensor's name: its first number."""
    match = re.search(r"\.(\d+)\.", name)
    return None if match is None else int(match[1])
