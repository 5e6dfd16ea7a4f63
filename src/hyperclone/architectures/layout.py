"""The layout language: one line says what each dimension of a stored tensor means.

    vocab hidden                                    an embedding: every dimension is written (output)
    (kv_heads group head_dim) <- hidden             nn.Linear: rows are outputs, columns are inputs
    hidden -> (3 heads head_dim)                    GPT-2's Conv1D: columns are outputs
    experts (2 ffn) <- hidden                       a matrix for each expert
    experts hidden -> (2 ffn)                       the same, stored as a Conv1D for each expert
    (kv_heads group head_dim + 2 kv_heads head_dim) <- hidden      concatenated parts in one dimension
    (kv_heads (group + 2) head_dim) <- hidden       parts inside a product: each KV head's queries, its key, its value
    norm(hidden)                                    a norm's gain or bias over an axis
    norm(kv_heads head_dim)                         a norm over the flattened axes
    (query(heads head_dim) + 2 heads head_dim)      rows of queries, rescaled when head_dim grows
    <- hidden                                       a vector that reads hidden (a final norm carrying the head's 1/n)
    ()                                              a single number

A name is an axis whose size the family file takes from the config; a number is an axis that never grows.
Several axes in parentheses are one stored dimension, flattened in C order (the last varies fastest). One dimension is
read: the one that the arrow comes from. In full:

    line      = dimension+ | dimension* "<-" dimension | dimension+ "->" dimension | "()"
    dimension = name | number | parts | "norm" parts
    parts     = "(" product ("+" product)* ")"
    product   = (name | number | ["query"] parts)+
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Union

from hyperclone.errors import FamilyError

Factor = Union[str, int, "Dim", "Query"]  # an axis, a number, or parts inside a product
Product = tuple[Factor, ...]  # factors flattened into one block, C order
Dim = tuple[Product, ...]  # blocks concatenated along one stored dimension


@dataclass(frozen=True)
class Query:
    """Parts that are rows of queries."""

    dim: Dim


_DEEPEST = 8  # levels of parentheses
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
        return frozenset(name for dim in self.dims for name in _names(dim))

    @cached_property
    def written(self) -> tuple[int, ...]:
        """Indices of the stored dimensions whose units are outputs."""
        return tuple(dim for dim in range(len(self.dims)) if dim != self.reads)

    @cached_property
    def queries(self) -> bool:
        """Some of its rows are queries."""
        return any(_has_queries(dim) for dim in self.dims)

    @cached_property
    def only_queries(self) -> bool:
        """All of its rows are queries."""
        out = self.dims[self.written[0]] if self.written else ()
        return all(len(block) == 1 and isinstance(block[0], Query) for block in out) and bool(out)

    def axes_of(self, dim: int) -> frozenset[str]:
        """Names of the axes in one stored dimension."""
        return frozenset(_names(self.dims[dim]))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The stored shape for the given axis sizes."""
        return tuple(_size(dim, sizes) for dim in self.dims)

    def as_reader(self) -> Layout:
        """The same one-dimensional tensor as a reader of its axis: its copies are split instead of repeated."""
        assert len(self.dims) == 1, self.text
        return Layout(text=f"<- {_spelled(self.dims[0])}", dims=self.dims, reads=0)


def _names(dim: Dim) -> Iterator[str]:
    for block in dim:
        for factor in block:
            if isinstance(factor, str):
                yield factor
            elif not isinstance(factor, int):
                yield from _names(factor.dim if isinstance(factor, Query) else factor)


def _has_queries(dim: Dim) -> bool:
    factors = [factor for block in dim for factor in block]
    return any(isinstance(f, Query) or (isinstance(f, tuple) and _has_queries(f)) for f in factors)


def _size(factor: Factor, sizes: Mapping[str, int]) -> int:
    if isinstance(factor, Query):
        return _size(factor.dim, sizes)
    if isinstance(factor, tuple):
        return sum(math.prod(_size(inner, sizes) for inner in block) for block in factor)
    return factor if isinstance(factor, int) else sizes[factor]


def _spelled(factor: Factor) -> str:
    if isinstance(factor, Query):
        inner = _spelled(factor.dim)
        return f"query{inner}" if inner.startswith("(") else f"query({inner})"
    if not isinstance(factor, tuple):
        return str(factor)
    text = " + ".join(" ".join(_spelled(inner) for inner in block) for block in factor)
    return text if len(factor) == len(factor[0]) == 1 else f"({text})"


def parse(line: str) -> Layout:
    """Parse one layout line.

    Raises:
        FamilyError: the line is not in the language; the message shows where.
    """
    return _Parser(line).layout()


class _Parser:
    """A recursive descent over the tokens of one line, one method for each rule of the grammar.

    Parentheses that change nothing leave no trace: (a (b c)) is (a b c), ((a + b) + c) is (a + b + c).
    """

    def __init__(self, line: str) -> None:
        self.line = line
        self.tokens = _tokens(line)
        self.index = 0

    def layout(self) -> Layout:
        """line = dimension+ | dimension* "<-" dimension | dimension+ "->" dimension | "()"."""
        if [token for token, _ in self.tokens] == ["(", ")"]:
            return Layout(self.line, (), None)
        left, norm = self.side()
        arrow = self.peek()
        if not arrow:
            if not left:
                raise self.error("at least one axis", 0)
            return Layout(self.line, tuple(left), None, norm)
        self.take()
        right, norm_on_the_right = self.side()
        if self.peek() or norm or norm_on_the_right:
            raise self.error(
                "one arrow, and no norm() beside it", self.tokens[min(self.index, len(self.tokens) - 1)][1]
            )
        if len(right) != 1 or (arrow == "->" and not left):
            raise self.error("one dimension behind the arrow (use parentheses to flatten axes), and one before ->", 0)
        # `->` stores inputs next to last; `<-` stores them last, and alone when there is no output side.
        return Layout(self.line, (*left, *right), len(left) - (arrow == "->"))

    def side(self) -> tuple[list[Dim], bool]:
        """The dimensions up to an arrow or the end, and whether one is a norm's."""
        dims: list[Dim] = []
        norm = False
        while self.peek() not in ("", "<-", "->"):
            if self.peek() == "norm":
                self.take()
                dims.append(self.parts(1))
                norm = True
            else:
                dims.append(self.dimension())
        return dims, norm

    def dimension(self, depth: int = 1) -> Dim:
        """name | number | ["query"] parts."""
        if self.peek() == "query":
            self.take()
            return ((Query(self.parts(depth)),),)
        return self.parts(depth) if self.peek() == "(" else ((self.name_or_number(),),)

    def parts(self, depth: int) -> Dim:
        """parts = "(" product ("+" product)* ")"."""
        if depth > _DEEPEST:
            raise self.error(f"at most {_DEEPEST} levels of parentheses")
        blocks: list[Product] = []
        self.take("(")
        while True:
            block = self.product(depth)
            blocks += block[0] if len(block) == 1 and isinstance(block[0], tuple) else (block,)
            if self.peek() != "+":
                break
            self.take()
        self.take(")")
        return tuple(blocks)

    def product(self, depth: int) -> Product:
        """product = dimension+."""
        factors: list[Factor] = []
        while not factors or self.peek() not in ("", "+", ")"):
            inner = self.dimension(depth + 1)
            factors += inner[0] if len(inner) == 1 else (inner,)
        return tuple(factors)

    def name_or_number(self) -> str | int:
        position = self.position
        token = self.take()
        if re.fullmatch(r"0*[1-9]\d{0,17}", token):
            return int(token)
        if not token.isidentifier() or token in ("norm", "query"):
            raise self.error("an axis name or a positive number", position)
        return token

    def peek(self) -> str:
        """The next token; "" at the end."""
        return self.tokens[self.index][0] if self.index < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        """The next token, which must be there, and be `expected` where that is given."""
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise self.error(expected or "an axis")
        self.index += 1
        return token

    @property
    def position(self) -> int:
        """Where the next token starts in the line."""
        return self.tokens[self.index][1] if self.index < len(self.tokens) else len(self.line)

    def error(self, expected: str, position: int | None = None) -> FamilyError:
        return _not_understood(self.line, self.position if position is None else position, expected)


def _tokens(line: str) -> list[tuple[str, int]]:
    """(token, position in the line) of every token."""
    tokens, position = [], 0
    stripped = line.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            position += len(stripped[position:]) - len(stripped[position:].lstrip())
            raise _not_understood(line, position, "a name, a number, '(', ')', '+', '<-' or '->'")
        tokens.append((match.group(1), match.start(1)))
        position = match.end()
    return tokens


def _not_understood(line: str, position: int, expected: str) -> FamilyError:
    return FamilyError(
        f"layout line not understood: {line!r}",
        found=f"{line[position:]!r} at column {position + 1}",
        expected=expected,
    )
