"""The layout language: one line says what each dimension of a stored tensor means.

    vocab hidden                                    an embedding: every dimension is written (output)
    (kv_heads group head_dim) <- hidden             nn.Linear: rows are outputs, columns are inputs
    hidden -> (3 heads head_dim)                    GPT-2's Conv1D: columns are outputs
    (kv_heads group head_dim + 2 kv_heads head_dim) <- hidden      concatenated parts in one dimension
    norm(hidden)                                    a norm's gain or bias over an axis
    <- hidden                                       a vector that reads hidden (a final norm carrying the head's 1/n)

A name is an axis whose size the family file takes from the config; a number is an axis that never grows.
Several axes in parentheses are one stored dimension, flattened in C order (the last varies fastest).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hyperclone.errors import FamilyError

Atom = str | int
Product = tuple[Atom, ...]  # axes flattened into one block, C order
Dim = tuple[Product, ...]  # blocks concatenated along one stored dimension

_TOKEN = re.compile(r"\s*(<-|->|[A-Za-z_]\w*|\d+|[()+])")


@dataclass(frozen=True)
class Layout:
    """What each stored dimension of a tensor means.

    Attributes:
        text: the line it was parsed from.
        dims: the stored dimensions, in stored order.
        reads: index of the stored dimension whose units are inputs; None when all are outputs.
        norm: the tensor is a norm's gain or bias.
    """

    text: str
    dims: tuple[Dim, ...]
    reads: int | None
    norm: bool = False

    @cached_property
    def axes(self) -> frozenset[str]:
        """Names of the axes that occur."""
        return frozenset(atom for dim in self.dims for block in dim for atom in block if isinstance(atom, str))

    def axes_of(self, dim: int) -> frozenset[str]:
        """Names of the axes in one stored dimension."""
        return frozenset(atom for block in self.dims[dim] for atom in block if isinstance(atom, str))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The stored shape for the given axis sizes."""
        return tuple(
            sum(math.prod(atom if isinstance(atom, int) else sizes[atom] for atom in block) for block in dim)
            for dim in self.dims
        )

    def reading(self) -> Layout:
        """The same one-dimensional tensor as a reader of its axis: its copies are split instead of repeated."""
        assert len(self.dims) == 1, self.text
        return Layout(text="<- " + re.sub(r"norm\s*\((.*)\)", r"\1", self.text).strip(), dims=self.dims, reads=0)


def parse(line: str) -> Layout:
    """Parse one layout line.

    Raises:
        FamilyError: the line is not in the language; the message shows the place.
    """
    tokens, position = [], 0
    stripped = line.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            position += len(stripped[position:]) - len(stripped[position:].lstrip())
            raise _bad(line, position, "a name, a number, '(', ')', '+', '<-' or '->'")
        tokens.append((match.group(1), match.start(1)))
        position = match.end()

    index = 0

    def peek() -> str:
        return tokens[index][0] if index < len(tokens) else ""

    def take(expected: str | None = None) -> str:
        nonlocal index
        token = peek()
        if not token or (expected is not None and token != expected):
            raise _bad(line, tokens[index][1] if index < len(tokens) else len(line), expected or "an axis")
        index += 1
        return token

    def atom() -> Atom:
        where = tokens[index][1] if index < len(tokens) else len(line)
        token = take()
        if re.fullmatch(r"0*[1-9]\d{0,17}", token):
            return int(token)
        if not token.isidentifier():
            raise _bad(line, where, "an axis name or a positive number")
        return token

    def side() -> tuple[list[Dim], bool]:
        dims: list[Dim] = []
        norm = False
        while peek() not in ("", "<-", "->"):
            if peek() == "norm":
                take()
                take("(")
                dims.append(((atom(),),))
                take(")")
                norm = True
            elif peek() == "(":
                take()
                blocks: list[Product] = []
                block: list[Atom] = [atom()]
                while peek() != ")":
                    if peek() == "+":
                        take()
                        blocks.append(tuple(block))
                        block = [atom()]
                    else:
                        block.append(atom())
                take(")")
                dims.append((*blocks, tuple(block)))
            else:
                dims.append(((atom(),),))
        return dims, norm

    left, norm = side()
    arrow = peek()
    if not arrow:
        if not left:
            raise _bad(line, 0, "at least one axis")
        return Layout(line, tuple(left), None, norm)
    take()
    right, norm_on_the_right = side()
    if peek() or norm or norm_on_the_right:
        raise _bad(line, tokens[min(index, len(tokens) - 1)][1], "one arrow, and no norm() beside it")
    if len(left) > 1 or len(right) != 1 or (arrow == "->" and not left):
        raise _bad(line, 0, "one dimension on each side of the arrow (use parentheses to flatten axes)")
    # `->` stores inputs first; `<-` stores them last, and alone when there is no output side.
    return Layout(line, (*left, *right), 0 if arrow == "->" or not left else 1)


def _bad(line: str, position: int, expected: str) -> FamilyError:
    return FamilyError(
        f"layout line not understood: {line!r}",
        found=f"{line[position:]!r} at column {position + 1}",
        expected=expected,
    )
