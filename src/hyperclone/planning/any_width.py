"""Any width: the factors that hide padding channels from the norms (docs/mathematics.md, section 1).

Let an axis of the residual stream grow from d to D = k d + r, and let a = k d / D. Padding channels add nothing to the
mean square (or variance) that a norm finds, which is therefore a times the old one. Either of two routes keeps the
function:

* *The norms are scaled*: gains times sqrt(a), eps times a. The config must have an eps for these norms alone.
* *The stream is scaled*: what writes it is multiplied by 1 / sqrt(a), so that norms find the old mean square, for any
  eps. What reads it is multiplied by sqrt(a): the gain of the norm in front, or the matrix itself where no norm with a
  gain stands between (OLMo 1 and 2). Gains of norms behind a block stay: what such a norm reads is written with the
  same factor, and what it returns is 1 / sqrt(a) times as large for the same reason as in front of a block.

Both are exact but for one rounding of each weight that is multiplied. What padding channels hold is in
expansion/padding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.layout import Layout


@dataclass(frozen=True)
class PaddedAxis:
    """An axis with padding channels.

    Attributes:
        share: k d / D, the part of its channels that are copies.
        eps: the config field of the norms' eps where they are scaled; None where the stream is.
        post_norms: gains that stand behind a block.
        gains: whether a norm with a gain is in front of what reads the axis, in layers (True) and outside (False).
    """

    share: Fraction
    eps: str | None
    post_norms: frozenset[str]
    gains: Mapping[bool, bool]

    def squared_factor(self, source: str, written: int, read: int, *, norm: bool, in_layer: bool) -> Fraction:
        """The square of what a tensor is multiplied by.

        Args:
            source: the name of the tensor that it grows from.
            written, read: how often the axis occurs in what it writes and reads.
            norm: it is a norm's gain or bias.
            in_layer: it belongs to a layer.
        """
        if norm:
            gain = not source.endswith(".bias") and (self.eps is not None or source not in self.post_norms)
            return self.share if gain else Fraction(1)
        if self.eps is not None:
            return Fraction(1)
        return self.share ** (-written + (0 if self.gains[in_layer] else read))


def padded_axes(
    family: Family, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], layouts: Mapping[str, Layout]
) -> dict[str, PaddedAxis]:
    """The axes of the residual stream that have padding channels.

    Args:
        family, config: of the source.
        sizes: (old, new) of every axis.
        layouts: of every tensor of the source.
    """
    return {axis: _padded(family, config, axis, sizes[axis], layouts) for axis in family.padding(config, sizes)}


def _padded(
    family: Family, config: Mapping[str, Any], axis: str, size: tuple[int, int], layouts: Mapping[str, Layout]
) -> PaddedAxis:
    old, new = size
    same = {other for other in family.axes if family.stream(other, config) == family.stream(axis, config)}
    gains = [name for name, layout in layouts.items()
             if layout.norm and layout.axes & same and not name.endswith(".bias")]  # fmt: skip
    post_norms = frozenset(name for name in gains if family.is_post_norm(name, axis, config))
    layered = {family.in_layer(name) for name in gains if name not in post_norms}
    return PaddedAxis(
        share=Fraction(new // old * old, new),
        eps=family.own_eps(axis, config),
        post_norms=post_norms,
        gains={in_layer: in_layer in layered for in_layer in (True, False)},
    )


def squared_factor(padded: Mapping[str, PaddedAxis], family: Family, layout: Layout, *, source: str) -> Fraction:
    """The square of what the values of a tensor are multiplied by because of padding channels.

    Args:
        padded: the axes that have them.
        family: of the source.
        layout: of the grown tensor.
        source: the name of the tensor that it grows from.
    """
    square = Fraction(1)
    for axis, padded_axis in padded.items():
        written = sum(axis in layout.axes_of(dim) for dim in layout.written)
        read = int(layout.reads is not None and axis in layout.axes_of(layout.reads))
        if written or read:
            in_layer = family.in_layer(source)
            square *= padded_axis.squared_factor(source, written, read, norm=layout.norm, in_layer=in_layer)
    return square


def scaled_fields(padded: Iterable[PaddedAxis]) -> dict[str, float]:
    """Config fields (eps of the norms) to be multiplied, and the factor."""
    return {axis.eps: float(axis.share) for axis in padded if axis.eps is not None}
