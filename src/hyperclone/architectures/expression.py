"""The small expressions of family files: config fields, whole-number arithmetic, conditions.

`a | b` is a, or b where the config leaves a out (or null). Division must come out whole; `a % b` is the remainder.
`a in b` asks whether b, a list, holds a; a list that is left out is empty. `a.b` is field b of the table a, and `a[b]`
entry b of the list a; either is null where there is none. `a if c else b` is a where c holds, else b.
Expressions are parsed by Python's parser and evaluated over its syntax tree, without calls; what is outside the
language is refused before anything is computed.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hyperclone.errors import CheckpointError, FamilyError

_LARGEST = 2**63  # of a whole number; Python computes with larger ones, at length, and cannot print all of them

Value = int | float | bool | str | list[Any] | Mapping[str, Any] | None


@lru_cache(maxsize=4096)
def _tree(text: str) -> ast.expr:
    try:
        with warnings.catch_warnings(action="error"):  # Python's of what it finds odd: refused, and not printed
            tree = ast.parse(text, mode="eval").body
        outside = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr) and not _inside(node)]
    except (SyntaxError, Warning, ValueError, RecursionError, MemoryError) as error:  # null bytes, nesting
        raise FamilyError(f"expression not understood: {text!r}", found=error) from None
    if outside:
        raise FamilyError(f"expression not understood: {text!r}", found=outside[0])
    return tree


def _inside(node: ast.expr) -> bool:
    """Whether a node is of the language, its children aside."""
    match node:
        case (
            ast.Constant(value=int() | float() | str() | None) | ast.BoolOp() | ast.UnaryOp(op=ast.Not()) | ast.IfExp()
        ):
            return True
        case ast.Name() | ast.Attribute(value=ast.Name()) | ast.Subscript(value=ast.Name(), slice=ast.Name()):
            return True
        case ast.BinOp(op=ast.BitOr() | ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Mod()):
            return True
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() | ast.Lt() | ast.In() | ast.NotIn()]):
            return True
    return False


def evaluate(text: str, fields: Mapping[str, Any]) -> Value:
    """The value of an expression over config fields.

    Raises:
        FamilyError: the expression uses something outside the language.
        CheckpointError: a field is missing, is not a number or a list where one is needed, or does not divide.
    """

    def wrong(node: ast.expr, value: Value, kind: str) -> CheckpointError:
        what = "is missing" if value is None else f"is not a {kind}"
        return CheckpointError(
            f"config field {what}", file="config.json", field=ast.unparse(node), found=value, expected=f"a {kind}"
        )

    def number(node: ast.expr) -> int | float:
        value = visit(node)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(node, value, "number")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise OverflowError
        return value

    def holds(left: ast.expr, right: ast.expr) -> bool:
        value = visit(right)
        if value is not None and not isinstance(value, list):
            raise wrong(right, value, "list")
        return visit(left) in (value or [])

    def entry(node: ast.expr, index: ast.expr) -> Value:
        values, place = visit(node), number(index)
        if values is not None and not isinstance(values, list):
            raise wrong(node, values, "list")
        return values[place] if values and isinstance(place, int) and 0 <= place < len(values) else None

    def divided(node: ast.BinOp) -> tuple[int | float, int | float]:
        a, b = number(node.left), number(node.right)
        if not b or (isinstance(node.op, ast.Div) and a % b):
            raise CheckpointError(
                "config fields do not divide",
                file="config.json",
                field=ast.unparse(node),
                found=f"{a} {'/' if isinstance(node.op, ast.Div) else '%'} {b}",
                expected="a whole number",
            )
        return a, b

    def visit(node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=int() | float() | str() | None as value):
                return value
            case ast.Name(id=name):
                return fields.get(name)
            case ast.Attribute(value=table, attr=name):
                within = visit(table)
                return within.get(name) if isinstance(within, Mapping) else None
            case ast.Subscript(value=left, slice=right):
                return entry(left, right)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                first = visit(left)
                return visit(right) if first is None else first
            case ast.BinOp(op=ast.Div()):
                a, b = divided(node)
                return a // b if isinstance(a, int) and isinstance(b, int) else a / b
            case ast.BinOp(op=ast.Mod()):
                a, b = divided(node)
                return a % b
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return number(left) * number(right)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return number(left) + number(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return number(left) - number(right)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(bool(visit(value)) for value in values)
            case ast.BoolOp(op=ast.Or(), values=values):
                return any(bool(visit(value)) for value in values)
            case ast.IfExp(test=condition, body=left, orelse=right):
                return visit(left) if visit(condition) else visit(right)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not visit(operand)
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                return visit(left) == visit(right)
            case ast.Compare(left=left, ops=[ast.NotEq()], comparators=[right]):
                return visit(left) != visit(right)
            case ast.Compare(left=left, ops=[ast.Lt()], comparators=[right]):
                return number(left) < number(right)
            case ast.Compare(left=left, ops=[ast.In()], comparators=[right]):
                return holds(left, right)
            case ast.Compare(left=left, ops=[ast.NotIn()], comparators=[right]):
                return not holds(left, right)
        raise AssertionError(ast.dump(node))  # _tree lets nothing else pass

    try:
        return visit(_tree(text))
    except RecursionError:
        raise FamilyError("expression nested too deeply", found=f"{text[:60]!r}...") from None
    except OverflowError:
        raise CheckpointError("config fields out of range", file="config.json", field=text,
                              expected="numbers that a model can have") from None  # fmt: skip


def names(text: str) -> tuple[str, ...]:
    """Config fields that an expression reads, in order of appearance."""
    nodes = [node for node in ast.walk(_tree(text)) if isinstance(node, ast.Name)]  # breadth first
    return tuple(dict.fromkeys(node.id for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset))))


def lead_field(text: str) -> str | None:
    """The config field that an expression's first alternative names, if it is a bare field: where a size is written."""
    node: ast.expr = _tree(text)
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        node = node.left
    return node.id if isinstance(node, ast.Name) else None
