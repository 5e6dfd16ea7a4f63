"""Whole messages of errors: the problem in words, and every detail that says where, what was found, and the cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from hyperclone.errors import HypercloneError


class Refusal(NamedTuple):
    """What is refused, and the error that says so.

    Attributes:
        call: raises it.
        kind: the error's class.
        problem: its first line.
        details: file, tensor, field, found, expected and cure, those that it has.
    """

    call: Callable[[], object]
    kind: type[HypercloneError]
    problem: str
    details: dict[str, str]


def check_refusal(refusal: Refusal) -> None:
    """The call raises this error, word for word."""
    with pytest.raises(HypercloneError) as caught:
        refusal.call()
    assert type(caught.value) is refusal.kind
    assert caught.value.problem == refusal.problem
    assert caught.value.details == refusal.details
