"""Whole messages of errors: the problem in words, and every detail that says where, what was found, and the cure."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hyperclone.errors import HypercloneError


class Refusal(NamedTuple):
    """What is refused, and the error that says so.

    Attributes:
        call: raises it; given a directory of its own, where it needs one.
        kind: the error's class.
        problem: its first line.
        details: file, tensor, field, found, expected and cure, those that it has; TMP stands for the directory.
    """

    call: Callable[..., object]
    kind: type[HypercloneError]
    problem: str
    details: dict[str, str]


def check_refusal(refusal: Refusal, directory: Path | None = None) -> None:
    """The call raises this error, word for word."""
    with pytest.raises(HypercloneError) as caught:
        refusal.call(*([directory] if inspect.signature(refusal.call).parameters else []))
    assert type(caught.value) is refusal.kind
    assert caught.value.problem == refusal.problem
    details = {label: text.replace(f"{directory}", "TMP") for label, text in caught.value.details.items()}
    assert details == refusal.details
