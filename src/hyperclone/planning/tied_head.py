"""How a head is tied: where the 1/n goes that the head of a wider model needs (docs/mathematics.md, section 1).

The head reads the hidden state. When that grows n-fold, each copy of the head's weights must be 1/n of the source's. A
tied head has the weights of the embedding, which writes the hidden state and must not be divided. So either

* the last norm in front of the head takes the 1/n. Its gain and bias become readers of the hidden state, whose n copies
  sum to the source's: `fold` changes their layout. Which norms these are says the family file, in `[tie] fold`.
* or the head is untied, and becomes a tensor of its own that grows from the embedding: where the model has no such norm
  with a gain (OLMo 1), or where the user asks for it (`--untie`).

`decide` says which, planner.py plans the tensors accordingly, notes.py tells the user, and expansion/expand.py splits
the norm as it splits every reader. In training such a norm has the learning rate of a reader (scaling_rule.py).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.layout import Layout
from hyperclone.planning.growth import Growth


@dataclass(frozen=True)
class TiedHead:
    """What becomes of a tied head. Of a head that is not tied in the source, nothing.

    Attributes:
        folded: norm tensors of the source that carry the head's 1/n.
        untied: the head becomes a tensor of its own.
    """

    folded: frozenset[str] = frozenset()
    untied: bool = False


def decide(
    family: Family,
    sizes: Mapping[str, tuple[int, int]],
    tensors: Container[str],
    growth: Growth,
    *,
    tied: bool,
) -> TiedHead:
    """Whether the head stays tied, and which norms carry its 1/n then.

    Args:
        family: of the grown model.
        sizes: (old, new) of every axis.
        tensors: names of the source's tensors.
        growth: the request.
        tied: the source's head shares the embedding.
    """
    if not tied or family.tie is None:
        return TiedHead()
    head = family.head_layout
    assert head.reads is not None
    grows = any(sizes[axis][0] != sizes[axis][1] for axis in head.axes_of(head.reads))
    norms = frozenset(name for name in family.tie.fold if name in tensors)
    if growth.untie or (grows and not norms):
        return TiedHead(untied=True)
    return TiedHead(folded=norms if grows else frozenset())


def fold(
    family: Family, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], norm: Layout
) -> tuple[Layout, float]:
    """(the layout of a norm that carries the head's 1/n, a divisor of its gain and bias).

    As a reader of its axis it is divided by the number of copies. The divisor undoes what the growth multiplies the
    embedding by (Gemma's), which the head shares.
    """
    assert family.tie is not None
    return norm.as_reader(), family.factor(family.tie.embedding, config, sizes)
