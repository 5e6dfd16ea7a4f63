"""Valid inputs with one wrong value: what no mutation of bytes comes upon soon, such as a number of 400 digits."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzzing import targets

JSON = ("config", "index", "receipt", "optimizer_dict")
TOML = ("family", "study")
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e308, float("inf"),
    float("nan"), "", "0", "\0", "~\0", "~", "..", "/", "a" * 300, "\ud800", "\u202e", "{", "1/0", "*", "9" * 400,
    [], [0], [[]], ["a", 1], [10**400], {}, {"": 0}, {"a": {"a": []}},
]  # fmt: skip
_TOML = ["0", "-1", "true", "1e999", "-inf", "nan", "1" * 400, "1" * 5000, '""', '"\\u0000"', '"~\\u0000"', '".."',
         '"/"', '"a / 0"', '"i"', "[]", "[0]", "[[]]", '["a", 1]', "{}", "{a = 0}", "1979-05-27", "00:00:00",
         "[" * 3000 + "]" * 3000, '"' + "a" * 300 + '"', '"' + "(" * 90 + "a" + ")" * 90 + '"',
         '"' + "9" * 400 + " * " + "9" * 400 + '"', '"study.toml"', '"family.toml"']  # fmt: skip
_ASSIGNED = re.compile(rb"(?m)^([^\[#\n=]+= *)(.+)$")


def wrong(name: str) -> Iterator[Callable[[], bytes]]:
    """Every valid input of a target with one of its values replaced or left out; each is made when it is called."""
    for data in targets.seeds(name):
        yield from _json(data) if name in JSON else _toml(data) if name in TOML else ()


def _json(data: bytes) -> Iterator[Callable[[], bytes]]:
    content = json.loads(data)
    for path in _paths(content):
        yield from (functools.partial(_replaced, content, path, value) for value in VALUES)
        yield functools.partial(_left_out, content, path)
    yield from (lambda: b"[" * 100_000, lambda: b'{"a":' * 100_000, lambda: b"1" * 5000)


def _replaced(content: Any, path: tuple[Any, ...], value: Any) -> bytes:
    changed = copy.deepcopy(content)
    _inner(changed, path[:-1])[path[-1]] = value
    return json.dumps(changed).encode()


def _left_out(content: Any, path: tuple[Any, ...]) -> bytes:
    changed = copy.deepcopy(content)
    del _inner(changed, path[:-1])[path[-1]]
    return json.dumps(changed).encode()


def _paths(content: Any) -> Iterator[tuple[Any, ...]]:
    """Where each value is: keys and positions, from outside to inside; of values that are alike, the first three."""
    inside: Any = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    inside = list(inside)
    alike = len({type(value) for _, value in inside}) == 1
    for key, value in inside[: 3 if alike else None]:
        yield (key,)
        yield from ((key, *path) for path in _paths(value))


def _inner(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _toml(data: bytes) -> Iterator[Callable[[], bytes]]:
    for match in _ASSIGNED.finditer(data):
        for value in _TOML:
            yield functools.partial(_spliced, data, match.span(2), value.encode())
        yield functools.partial(_spliced, data, match.span())
    for header in re.finditer(rb"(?m)^\[.*\]$", data):
        yield functools.partial(_spliced, data, header.span())


def _spliced(data: bytes, span: tuple[int, int], new: bytes = b"") -> bytes:
    return data[: span[0]] + new + data[span[1] :]
