"""The entries of a family file, as data: axes, tensors, the tie, the residual stream, upcycling (family.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperclone.architectures.layout import Layout


@dataclass(frozen=True)
class Axis:
    """A named axis.

    Attributes:
        size: config expression.
        grows_with: another axis, by whose factor it grows too.
        alias: another axis, whose units are the same (OPT's embed).
        when: condition for either.
    """

    size: str
    grows_with: str | None = None
    alias: str | None = None
    when: str | None = None


@dataclass(frozen=True)
class TensorLine:
    """One line of [tensors]: a name with {i} for the layer and {e} for the expert, its layout, when it exists.

    Where the name has {i}, the condition sees the layer's number as i. Of several lines for one name, the first whose
    condition holds is meant.
    """

    pattern: str
    layout: Layout
    when: str | None = None


@dataclass(frozen=True)
class Tie:
    """The head that may share the embedding, and the last norm's tensors that then carry its 1/n."""

    when: str
    head: str
    embedding: str
    fold: tuple[str, ...]


@dataclass(frozen=True)
class Residual:
    """An axis that may grow to any size (planning/any_width.py).

    Attributes:
        padding: what padding channels hold: "zero" or "mean".
        eps: the config field of its norms' eps; None where the code fixes it or other norms have the same.
        shared: condition under which other norms have the same eps.
        post_norms: gains of norms that stand behind a block, in front of the residual connection.
        when: condition under which it may grow so.
    """

    padding: str
    eps: str | None = None
    shared: str | None = None
    post_norms: tuple[str, ...] = ()
    when: str | None = None


@dataclass(frozen=True)
class Multiplied:
    """The axis by the root of whose size a model multiplies a tensor, and a condition for it."""

    axis: str
    when: str | None = None


@dataclass(frozen=True)
class Pattern:
    """A text in which each letter stands for an entry of a list: the list's field, and the entries by their letters."""

    into: str
    letters: Mapping[str, str]


@dataclass(frozen=True)
class Dense:
    """A dense model type that can become a mixture of experts."""

    leave: tuple[str, ...]  # config fields that a mixture does not have
    refuse: Mapping[str, str]  # conditions over the config -> why such a model has no counterpart


@dataclass(frozen=True)
class Upcycling:
    """How dense models become mixtures of this family (upcycling.py)."""

    architecture: str
    write: Mapping[str, str]  # config fields
    router: str  # the tensor that has no source
    tensors: Mapping[str, str]  # pattern here -> pattern there
    dense: Mapping[str, Dense]  # by model type
