"""The expressions of family files: what they compute, and that nothing else gets through."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hyperclone.architectures.expression import evaluate, lead_field, names
from hyperclone.errors import CheckpointError, FamilyError, HypercloneError
from tests.helpers.examples import examples

FIELDS: dict[str, Any] = {
    "hidden": 12,
    "heads": 4,
    "zero": 0,
    "null": None,
    "yes": True,
    "no": False,
    "word": "rope",
    "list": [1, 2],
    "scale": 0.5,
    "table": {"inner": 3, "null": None},
    "one": 1,
    "minus": -1,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hidden", 12),
        ("hidden / heads", 3),
        ("hidden / (null | heads)", 3),
        ("3 * heads + 2 - 1", 13),
        ("2 - 3 - 4", -5),
        ("2 + 3 * 4", 14),
        ("missing | null | hidden", 12),
        ("head_dim | hidden / heads", 3),
        ("hidden | missing", 12),
        ("zero | hidden", 0),
        ("no | yes", False),
        ("missing", None),
        ("null | null", None),
        ("'text'", "text"),
        ("word == 'rope'", True),
        ("word != 'rope'", False),
        ("word == null", False),
        ("list", [1, 2]),
        ("not yes", False),
        ("not missing", True),
        ("yes and heads", True),
        ("no or zero", False),
        ("no or hidden == 12", True),
        ("not yes and no", False),
        ("heads * scale", 2.0),
        ("hidden % heads", 0),
        ("(heads + 1) % 3", 2),
        ("1 + heads % 3 * 2", 3),
        ("(2 - 3) % heads", 3),
        ("2 in list", True),
        ("hidden in list", False),
        ("hidden not in list", True),
        ("1 not in list", False),
        ("1 in missing", False),
        ("table.inner + heads", 7),
        ("table.missing | table.null | heads", 4),
        ("missing.inner", None),
        ("heads.real", None),  # a number is no table
        ("1 not in null", True),
        ("1 in (missing | list)", True),
        ("missing in list", False),
        ("heads - 2 in list and not heads in list", True),
        ("1.0 / scale", 2.0),
        ("None", None),
        ("True", True),
        ("heads < hidden", True),
        ("hidden < heads", False),
        ("heads < heads", False),
        ("not heads < 2 + 2", True),
        ("list[one]", 2),  # counted from 0
        ("list[zero]", 1),
        ("list[heads]", None),  # beyond its end
        ("list[minus]", None),
        ("missing[zero]", None),
        ("list[one] == 2 and not missing[zero]", True),
    ],
)
def test_an_expression_has_the_value_it_reads_like(text: str, value: object) -> None:
    found = evaluate(text, FIELDS)
    assert found == value
    assert type(found) is type(value)


@examples(200)
@given(st.data())
def test_whole_number_arithmetic_agrees_with_rational_arithmetic(data: st.DataObject) -> None:
    fields = {name: data.draw(st.one_of(st.none(), st.integers(-50, 50))) for name in "abc"}

    class Refused(Exception):
        """The reference does not divide, or lacks a number."""

    def tree(depth: int) -> tuple[str, Callable[[], Fraction | None]]:
        """(text, a function to its value as a Fraction or None)."""
        if depth == 0:
            name = data.draw(st.sampled_from("abc"))
            value = fields[name]
            return name, lambda: None if value is None else Fraction(value)
        symbol = data.draw(st.sampled_from("+-*/%|"))
        (left, left_value), (right, right_value) = tree(depth - 1), tree(depth - 1)

        def compute() -> Fraction | None:
            a = left_value()
            if symbol == "|":
                return right_value() if a is None else a
            b = right_value()
            if a is None or b is None or (symbol in "/%" and b == 0) or (symbol == "/" and (a / b).denominator != 1):
                raise Refused
            if symbol == "%":
                return a - b * math.floor(a / b)
            arithmetic = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
            return Fraction(arithmetic[symbol](a, b))

        return f"({left} {symbol} {right})", compute

    text, value = tree(data.draw(st.integers(0, 3)))
    try:
        expected = value()
    except Refused:
        with pytest.raises(CheckpointError):
            evaluate(text, fields)
        return
    assert evaluate(text, fields) == expected


@pytest.mark.parametrize("text", ["hidden / 5", "hidden / zero", "heads / hidden", "1.5 / 1", "5 / 2"])
def test_division_that_is_not_whole_is_an_error_that_names_the_division(text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        evaluate(text, FIELDS)
    assert caught.value.details["field"] == text
    assert caught.value.details["file"] == "config.json"


@pytest.mark.parametrize("text", ["1 in word", "'r' in word", "1 not in heads", "1 in 1", "2 in zero"])
def test_only_a_list_holds_something(text: str) -> None:
    with pytest.raises(CheckpointError, match="is not a list"):
        evaluate(text, FIELDS)


@pytest.mark.parametrize("text", ["hidden % zero", "hidden % (heads - 4)"])
def test_a_remainder_needs_something_to_divide_by(text: str) -> None:
    with pytest.raises(CheckpointError, match="do not divide") as caught:
        evaluate(text, FIELDS)
    assert caught.value.details["field"] == text


@pytest.mark.parametrize(
    "text",
    [
        "word % 2",
        "5 % null",
        "list % list",
        "missing + 1",
        "word * 2",
        "2 * yes",
        "list + list",
        "null / 2",
        "3 - word",
    ],
)
def test_arithmetic_on_what_is_not_a_number_is_an_error(text: str) -> None:
    with pytest.raises(CheckpointError, match="config field"):
        evaluate(text, FIELDS)


HOSTILE = [
    "__import__('os')",
    "__import__('os').system('true')",
    "a.b.c",
    "a.b()",
    "(a | b).c",
    "a[0]",
    "(lambda: 1)()",
    "lambda: 1",
    "a ** b",
    "9 ** 9 ** 9 ** 9",
    "a // b",
    "1 << 99999999999",
    "a & b",
    "a ^ b",
    "~a",
    "-a",
    "+a",
    "a if b",
    "a if b else c()",  # also where it would not be reached
    "[x for x in a]",
    "[1, 2]",
    "(1, 2)",
    "{1: 2}",
    "{1}",
    "f'{a}'",
    "a := 1",
    "(a := 1)",
    "a = 1",
    "a; b",
    "import os",
    "a > b",
    "a is b",
    "a in [1]",
    "a in (1, 2)",
    "a in b in c",
    "a or b()",  # also where it would not be reached
    "c and a[0]",
    "a == b == c",
    "await a",
    "*a",
    "...",
    "1j",
    "b'bytes'",
    "",
    "   ",
    "(",
    "a b",
    "a\x00b",
    "\ud800",
    "'unfinished",
    "(" * 300 + "a" + ")" * 300,
    "not " * 20000 + "a",
    "a" + " + a" * 900,  # shallow enough for the parser
    "a" + " + a" * 20000,
    "9" * 5000,
]


def test_a_condition_chooses_between_two_values() -> None:
    text = "a / 2 if b else a + 1"
    assert [evaluate(text, {"a": 4, "b": value}) for value in (True, False, None, 1)] == [2, 5, 5, 2]
    assert evaluate("a if c == 1 else a / c if c == 2 else 7", {"a": 3, "c": 1}) == 3  # what is not chosen may fail
    assert names("a if b else c") == ("a", "b", "c")
    assert lead_field("a if b else c") is None


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_what_is_outside_the_language_is_refused(text: str) -> None:
    with pytest.raises(FamilyError):
        evaluate(text, {"a": 1, "b": 1, "c": 1, "x": 1})


def test_nothing_is_called_while_an_expression_is_evaluated() -> None:
    class Trap:
        def __call__(self, *args: object) -> None:
            raise AssertionError("called")

        def __getattr__(self, name: str) -> None:
            raise AssertionError("looked into")

    assert evaluate("trap.x", {"trap": Trap()}) is None
    for text in ("trap()", "trap.x()", "trap[0]", "f'{trap}'"):
        with pytest.raises(FamilyError):
            evaluate(text, {"trap": Trap()})


def test_numbers_out_of_range_are_an_error_of_the_config() -> None:
    with pytest.raises(CheckpointError):
        evaluate("a * 0.5", {"a": 10**400})


@examples(300)
@given(
    st.one_of(
        st.text(max_size=25),
        st.lists(
            st.sampled_from(
                ["a", "b", " ", "+", "*", "/", "%", "|", "(", ")", "not ", " in ", " and ", "==", ".", "[", "1", ","]
            )
        ).map("".join),
    )
)
@example("a\\")
@example("'\\d'")
@example("0or 1")
@example("-" * 400 + "a")
@example("~" * 80 + "a")
def test_junk_raises_nothing_but_our_own_errors(text: str) -> None:
    for call in (lambda: evaluate(text, {"a": 6, "b": None}), lambda: names(text), lambda: lead_field(text)):
        try:
            call()
        except HypercloneError:
            continue


def test_names_are_the_fields_an_expression_reads_in_order() -> None:
    assert names("(a * b) | c") == ("a", "b", "c")
    assert names("head_dim | hidden / heads") == ("head_dim", "hidden", "heads")
    assert names("a + a * b") == ("a", "b")
    assert names("3") == ()


@pytest.mark.parametrize(
    ("text", "field"),
    [("a", "a"), ("a | b", "a"), ("a | b | c / d", "a"), ("a / b | c", None), ("3", None), ("a * b", None)],
)
def test_the_lead_field_is_where_a_size_is_written(text: str, field: str | None) -> None:
    assert lead_field(text) == field


def test_a_refusal_shows_the_part_that_is_not_understood() -> None:
    with pytest.raises(FamilyError) as caught:
        evaluate("1 + a[0]", {"a": 1})
    assert caught.value.details["found"] == ast.unparse(ast.parse("a[0]", mode="eval"))


@pytest.mark.parametrize("text", ["a < b", "b < a", "a[b]", "a[a]", "b[a]"])
def test_what_is_no_number_is_not_compared_and_what_is_no_list_has_no_entries(text: str) -> None:
    with pytest.raises(CheckpointError):
        evaluate(text, {"a": "text", "b": 1})
